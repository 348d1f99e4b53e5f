#!/usr/bin/env python3
"""Parquet files as data sets are published: `dms prepare` reads them as it reads the same records in JSONL.

Usage: parquet_reference.py PATH_TO_DMS MODEL_DIR          (MODEL_DIR: the sample model)
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import h5py
import pyarrow
import pyarrow.parquet

PROGRAM = SAMPLE_MODEL = None

RECORDS = {
    "text": [{"text": f"text number {i} é 日本\n" * (i % 5), "id": i} for i in range(400)],
    "messages": [{"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a" * i}]} for i in range(50)],
    "openr1": [
        {"problem": f"p{i}", "solution": None, "uuid": str(i), "generations": [f"<think>\nx\n</think>\n\n{i}", "two", "three"][: i % 4],
         "correctness_math_verify": [True, i % 3 == 0, False][: i % 4], "correctness_count": i}
        for i in range(60)
    ],
}  # fmt: skip


class Parquet(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = pathlib.Path(directory.name)

    def prepare(self, source, *options):
        out = self.dir / "out.h5"
        command = [PROGRAM, "prepare", "--force", "--tokenizer", SAMPLE_MODEL, "--out", out, *options, source]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return done.stderr
        with h5py.File(out) as file:
            mask = file["loss_mask"][:].tolist() if "loss_mask" in file else None
            return {"tokens": file["tokens"][:].tolist(), "offsets": file["documents/offsets"][:].tolist(),
                    "line": file["documents/line"][:].tolist(), "mask": mask}  # fmt: skip

    def test_equal_to_the_same_records_in_jsonl(self):
        for name, records in RECORDS.items():
            for codec, rows in (("snappy", 7), ("zstd", 1000), ("gzip", 20), ("none", 64)):
                with self.subTest(name, codec=codec):
                    pyarrow.parquet.write_table(
                        pyarrow.Table.from_pylist(records), self.dir / "a.parquet", compression=codec, row_group_size=rows)
                    (self.dir / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
                    options = ["--solutions", "verified"] if name == "openr1" else []
                    expected = self.prepare(self.dir / "a.jsonl", *options)
                    self.assertGreater(len(expected["offsets"]), 30)
                    self.assertEqual(self.prepare(self.dir / "a.parquet", *options), expected)

    def test_damage_is_an_error_of_the_input(self):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS["text"]), self.dir / "a.parquet")
        whole = (self.dir / "a.parquet").read_bytes()
        for name, damaged in (("cut", whole[: len(whole) // 2]), ("footer", whole[:-12] + b"\xff" * 8 + whole[-4:]),
                              ("data", whole[:40] + bytes(400) + whole[440:])):  # fmt: skip
            with self.subTest(name):
                (self.dir / "b.parquet").write_bytes(damaged)
                self.assertIn("b.parquet: cannot be read as Parquet", self.prepare(self.dir / "b.parquet"))

    def test_columns_that_are_no_text_are_named(self):
        pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([b"x"], pyarrow.binary())}), self.dir / "a.parquet")
        self.assertIn("a column has the type binary", self.prepare(self.dir / "a.parquet"))
        pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), self.dir / "a.parquet")
        self.assertIn("a.parquet:1: has none of the known forms", self.prepare(self.dir / "a.parquet"))
        self.assertIn("tokens", self.prepare(self.dir / "a.parquet", "--field", "body"))


if __name__ == "__main__":
    PROGRAM, SAMPLE_MODEL = os.path.abspath(sys.argv[1]), sys.argv[2]
    del sys.argv[1:3]
    unittest.main(verbosity=2)
