#!/usr/bin/env python3
"""Parquet files as data sets are published: `dms prepare` reads them as it reads the same records in JSONL.

Usage: parquet_reference.py PATH_TO_DMS MODEL_DIR          (MODEL_DIR: the sample model)
"""

import csv
import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

import h5py
import numpy
import pyarrow
import pyarrow.parquet
import safetensors.numpy

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
            (self.dir / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
            options = ["--solutions", "verified"] if name == "openr1" else []
            expected = self.prepare(self.dir / "a.jsonl", *options)
            self.assertGreater(len(expected["offsets"]), 30)
            for codec, rows in (("snappy", 7), ("zstd", 1000), ("gzip", 20), ("none", 64)):
                with self.subTest(name, codec=codec):
                    pyarrow.parquet.write_table(
                        pyarrow.Table.from_pylist(records), self.dir / "a.parquet", compression=codec, row_group_size=rows)
                    found = self.prepare(self.dir / "a.parquet", *options)
                    self.assertIsInstance(found, dict, found)
                    self.assertEqual([key for key in expected if found[key] != expected[key]], [])

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

    def test_questions_of_a_benchmark_in_every_form(self):
        """AIME, GPQA and MATH with the columns that they are published with: the same questions whatever they come in."""
        self.write_small_model()
        published = {
            "aime": [{"id": 60 + i, "problem": f"p {i}, \"q\"\nr", "solution": "s", "answer": str(i), "url": "u", "year": "2024"}
                     for i in range(5)],
            "gpqa": [{"Record ID": f"rec{i}", "Question": f"why {i}?", "Correct Answer": "a\n", "Incorrect Answer 1": "b, c",
                      "Incorrect Answer 2": "d", "Incorrect Answer 3": "e", "Explanation": None, "Subdomain": "x"} for i in range(5)],
            "math": [{"problem": f"p{i}", "solution": "s", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": i,
                      "unique_id": f"test/{i}.json"} for i in range(5)],
        }  # fmt: skip
        for task, records in published.items():
            with self.subTest(task):
                lines = "".join(json.dumps(record) + "\n" for record in records)
                (self.dir / "q.jsonl").write_text(lines)
                (self.dir / "q.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
                (self.dir / "q.json").write_text(json.dumps(records))
                with open(self.dir / "q.csv", "w", newline="") as file:
                    writer = csv.DictWriter(file, list(records[0]))
                    writer.writeheader()
                    writer.writerows(records)
                table = pyarrow.Table.from_pylist(records)
                odd = pyarrow.array([b"\xff"] * len(records), pyarrow.binary())
                pyarrow.parquet.write_table(table.append_column("image", odd), self.dir / "q.parquet", row_group_size=2)
                hashes = {form: self.questions_hash(task, f"q.{form}") for form in ("jsonl", "jsonl.gz", "json", "csv", "parquet")}
                self.assertEqual(len(set(hashes.values())), 1, hashes)
                pyarrow.parquet.write_table(table.drop_columns([list(records[0])[2]]), self.dir / "q.parquet")
                if task != "aime":  # whose third column is the solution
                    self.assertIn("q.parquet:1: has no column", self.questions_hash(task, "q.parquet"))

    def write_small_model(self):
        """One layer of zeros under the sample model's tokenizer."""
        config = json.loads((pathlib.Path(SAMPLE_MODEL) / "config.json").read_text())
        config |= {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
                   "num_key_value_heads": 1, "head_dim": 8}  # fmt: skip
        (self.dir / "config.json").write_text(json.dumps(config))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(pathlib.Path(SAMPLE_MODEL) / name, self.dir)
        layer = "model.layers.0."
        square = [f"self_attn.{name}_proj.weight" for name in "qkvo"] + [f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
        shapes = {"model.embed_tokens.weight": (config["vocab_size"], 8), "model.norm.weight": (8,)}
        shapes |= {layer + name: (8, 8) for name in square}
        shapes |= {layer + name: (8,) for name in ("input_layernorm.weight", "post_attention_layernorm.weight")}
        tensors = {name: numpy.zeros(shape, numpy.float32) for name, shape in shapes.items()}
        safetensors.numpy.save_file(tensors, self.dir / "model.safetensors", {"format": "pt"})

    def questions_hash(self, task, name):
        out = self.dir / "out.jsonl"
        out.unlink(missing_ok=True)
        command = [PROGRAM, "eval-tasks", "--model", self.dir, "--task", task, "--data", self.dir / name, "--out", out,
                   "--limit", "1", "--max-new-tokens", "1"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return done.stderr
        return json.loads(out.read_text().splitlines()[0])["conditions"]["questions_sha256"]


if __name__ == "__main__":
    PROGRAM, SAMPLE_MODEL = os.path.abspath(sys.argv[1]), sys.argv[2]
    del sys.argv[1:3]
    unittest.main(verbosity=2)
