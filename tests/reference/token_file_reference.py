#!/usr/bin/env python3
"""Token files and h5py: ours open there with the documented layout, and files made there open here or are refused.

Usage: token_file_reference.py TOKEN_FILE_SAMPLE   (the test program of that name)
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

import h5py
import numpy as np

TOKEN_FILE_SAMPLE = None


class TokenFileCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "tokens.h5"

    def read(self):
        return subprocess.run([TOKEN_FILE_SAMPLE, "read", str(self.path)], capture_output=True, text=True)

    def contents(self):
        run = self.read()
        self.assertEqual(run.returncode, 0, run.stderr)
        return json.loads(run.stdout), run.stderr

    def refusal(self):
        run = self.read()
        self.assertEqual(run.returncode, 2, run.stderr)
        return run.stderr


class OursInH5py(TokenFileCase):
    def test_layout(self):
        subprocess.run([TOKEN_FILE_SAMPLE, "write", str(self.path)], check=True)
        with h5py.File(self.path, "r") as file:
            attributes = dict(file.attrs)
            expected = {
                "format": "dms-tokens", "version": 1, "complete": 1, "created_by": "token_file_sample", "vocab_size": 1000,
                "tokenizer_sha256": "a" * 64, "tokenizer_name": "tökenizer", "chat_template_sha256": "", "template": "",
                "date_string": "", "bos_token_id": -1, "eos_token_id": 2, "pad_token_id": -1, "num_tokens": 100010,
                "num_documents": 4, "options_json": "{}"}
            self.assertRegex(attributes.pop("created_utc"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
            tokens = np.arange(100010, dtype="<u4") % 1000
            self.assertEqual(attributes.pop("tokens_sha256"), hashlib.sha256(tokens.tobytes()).hexdigest())
            self.assertEqual(attributes, expected)
            self.assertEqual(file.attrs["complete"].dtype, np.int8)
            self.assertEqual(file.attrs["version"].dtype, np.int64)
            self.assertTrue(np.array_equal(file["tokens"][:], tokens))
            self.assertEqual(file["tokens"][99998:100004].tolist(), [998, 999, 0, 1, 2, 3])
            self.assertEqual(file["documents/offsets"][:].tolist(), [0, 3, 3, 100003, 100010])
            self.assertEqual(file["documents/source"][:].tolist(), [0, 1, 0, 1])
            self.assertEqual(file["documents/line"][:].tolist(), [1, 2, 3, 4])
            self.assertTrue(np.array_equal(file["loss_mask"][:], np.arange(100010) % 2))
            self.assertEqual(file["sources/name"].asstr()[:].tolist(), ["größe.txt", "b.jsonl"])
            self.assertEqual(file["sources/sha256"].asstr()[:].tolist(), ["1" * 64, "2" * 64])
            self.assertEqual(file["sources/size"][:].tolist(), [10, 1 << 40])
            layout = {name: (d.dtype.str, d.chunks, d.shuffle, d.compression, d.compression_opts, d.fletcher32)
                      for name, d in ((n, file[n]) for n in ("tokens", "loss_mask", "documents/offsets", "documents/source",
                                                             "documents/line", "sources/size"))}
            self.assertEqual(layout, {
                "tokens": ("<u4", (65536,), True, "gzip", 4, True),
                "loss_mask": ("|u1", (65536,), True, "gzip", 4, False),
                "documents/offsets": ("<u8", (8192,), False, "gzip", 4, False),
                "documents/source": ("<u4", (8192,), False, "gzip", 4, False),
                "documents/line": ("<u8", (8192,), False, "gzip", 4, False),
                "sources/size": ("<u8", None, False, None, None, False)})

    def test_reads_back(self):
        subprocess.run([TOKEN_FILE_SAMPLE, "write", str(self.path)], check=True)
        contents, warnings = self.contents()
        self.assertEqual(warnings, "")
        self.assertEqual(contents["tokens"], (np.arange(100010) % 1000).tolist())
        self.assertEqual(contents["offsets"], [0, 3, 3, 100003, 100010])
        self.assertEqual(contents["loss_mask"], (np.arange(100010) % 2).tolist())
        self.assertEqual(contents["attributes"]["tokenizer_name"], "tökenizer")


class H5pysHere(TokenFileCase):
    """A complete file of the documented layout from h5py, and one change a test."""

    def write(self, dtype="<u4", change=None):
        tokens = (np.arange(70000) % 300).astype(dtype)
        with h5py.File(self.path, "w", libver=("earliest", "v110")) as file:
            file.attrs.update({
                "format": "dms-tokens", "version": np.int64(1), "complete": np.int8(1), "created_by": "h5py",
                "created_utc": "2026-01-01T00:00:00Z", "vocab_size": np.int64(300), "tokenizer_sha256": "b" * 64,
                "tokenizer_name": "t", "num_tokens": np.int64(70000), "num_documents": np.int64(2),
                "tokens_sha256": hashlib.sha256(tokens.tobytes()).hexdigest()})
            file.create_dataset("tokens", data=tokens, chunks=(65536,), shuffle=True, compression="gzip", fletcher32=True)
            file.create_dataset("documents/offsets", data=np.array([0, 5, 70000], "<u8"), maxshape=(None,), chunks=(8192,), compression="gzip")
            file.create_dataset("documents/source", data=np.zeros(2, "<u4"), maxshape=(None,), chunks=(8192,), compression="gzip")
            file.create_dataset("documents/line", data=np.array([1, 2], "<u8"), maxshape=(None,), chunks=(8192,), compression="gzip")
            if change:
                change(file)

    def test_both_token_types(self):
        for dtype in ("<u4", "<u2"):
            self.write(dtype)
            contents, warnings = self.contents()
            self.assertEqual(warnings, "")
            self.assertEqual(contents["tokens"], (np.arange(70000) % 300).tolist())
            self.assertEqual(contents["offsets"], [0, 5, 70000])
            self.assertEqual(contents["loss_mask"], [])
            self.assertEqual((contents["vocab_size"], contents["tokenizer_sha256"]), (300, "b" * 64))

    def replace(self, name, data, **options):
        def change(file):
            del file[name]
            file.create_dataset(name, data=data, **options)
        return change

    def test_refusals(self):
        huge = h5py.h5s.UNLIMITED
        cases = {
            "format is 'other'": lambda f: f.attrs.update(format="other"),
            "format version is 2": lambda f: f.attrs.update(version=np.int64(2)),
            "'version' is missing or is not an integer": lambda f: f.attrs.update(version="1"),
            "was never completed": lambda f: f.attrs.update(complete=np.int8(0)),
            "'tokenizer_sha256' is missing": lambda f: f.attrs.pop("tokenizer_sha256"),
            "vocab_size is 0": lambda f: f.attrs.update(vocab_size=np.int64(0)),
            "has id 299, outside the vocabulary of 299": lambda f: f.attrs.update(vocab_size=np.int64(299)),
            "where attribute 'num_tokens' says 69999": lambda f: f.attrs.update(num_tokens=np.int64(69999)),
            "where attribute 'num_documents' says 3": lambda f: f.attrs.update(num_documents=np.int64(3)),
            "the SHA-256 of its tokens is": lambda f: f["tokens"].__setitem__(7, 8),
            "'/tokens' must be uint32 or uint16": self.replace("tokens", np.zeros(70000, "<i8")),
            "'/tokens' must be one-dimensional": self.replace("tokens", np.zeros((7, 10000), "<u4")),
            "has no dataset '/tokens'": lambda f: f.pop("tokens"),
            "holds no tokens": self.replace("tokens", np.zeros(0, "<u4")),
            "'/documents/offsets' must rise from 0": self.replace("documents/offsets", np.array([0, 9, 5, 70000], "<u8")),
            "rise from 0 to the number of tokens, 70000": self.replace("documents/offsets", np.array([0, 5, 70001], "<u8")),
            "at least two integers": self.replace("documents/offsets", np.array([0.0, 5.0, 70000.0])),
            "'/documents/line' must have one entry": self.replace("documents/line", np.zeros(3, "<u8")),
            "'/loss_mask' must hold one integer": lambda f: f.create_dataset("loss_mask", data=np.ones(69999, "u1")),
            "claims 1152921504606846976 elements": self.replace(
                "tokens", None, shape=(1 << 60,), maxshape=(huge,), chunks=(65536,), dtype="<u4"),
            "is a soft or external link": lambda f: (
                f.pop("tokens"), f.__setitem__("tokens", h5py.ExternalLink("/etc/hostname", "/tokens"))),
        }
        for message, change in cases.items():
            with self.subTest(message):
                self.write(change=change)
                self.assertIn(message, self.refusal())

    def test_virtual_and_external_storage_are_refused(self):
        def virtual(file):
            del file["tokens"]
            layout = h5py.VirtualLayout(shape=(70000,), dtype="<u4")
            layout[:] = h5py.VirtualSource("/tmp/other.h5", "tokens", shape=(70000,))
            file.create_virtual_dataset("tokens", layout)

        self.write(change=virtual)
        self.assertIn("keeps its data in other files", self.refusal())
        self.write(change=self.replace("tokens", None, shape=(70000,), dtype="<u4", external="/etc/hostname"))
        self.assertIn("keeps its data in other files", self.refusal())


class Foreign(TokenFileCase):
    def test_tokens_alone_are_one_document(self):
        for dtype in ("<i8", "<u2", "<i4"):
            with h5py.File(self.path, "w") as file:
                file["tokens"] = np.array([5, 0, 41], dtype)
            contents, warnings = self.contents()
            self.assertEqual((contents["tokens"], contents["offsets"], contents["vocab_size"]), ([5, 0, 41], [0, 3], 42))
            self.assertIn("not written by 'dms prepare'", warnings)

    def test_offsets_are_used(self):
        with h5py.File(self.path, "w") as file:
            file["tokens"] = np.array([5, 0, 41])
            file["offsets"] = np.array([0, 1, 3])
        self.assertEqual(self.contents()[0]["offsets"], [0, 1, 3])

    def test_refusals(self):
        for tokens, message in ((np.array([5, -1]), "token 1 has id -1"), (np.array([1 << 40]), "has id 1099511627776"),
                                (np.array([(1 << 64) - 1], "<u8"), "has id 9223372036854775807"), (np.array([0.5]), "must hold integers")):
            with h5py.File(self.path, "w") as file:
                file["tokens"] = tokens
            self.assertIn(message, self.refusal())
        with h5py.File(self.path, "w") as file:
            file["text"] = np.arange(5)
        self.assertIn("is an HDF5 file but not a token file", self.refusal())


if __name__ == "__main__":
    TOKEN_FILE_SAMPLE = sys.argv[1]
    del sys.argv[1]
    unittest.main(verbosity=2)
