"""The safetensors library and this project's code agree: on what is read, on every byte that is written, on what is
a valid file.

    safetensors_reference.py PATH_TO_SAFETENSORS_SAMPLE
"""

import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import unittest

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

SAMPLE = None


def sample_tensors():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(3, 5, generator=generator)
    tensors = {
        "f32": values, "f16": values.half(), "bf16": values.bfloat16(), "f64": values.double(),
        "i64": torch.arange(-3, 4), "i32": torch.arange(-3, 4, dtype=torch.int32),
        "i16": torch.arange(-3, 4, dtype=torch.int16), "i8": torch.arange(-3, 4, dtype=torch.int8),
        "u8": torch.arange(7, dtype=torch.uint8),
        "scalar": torch.tensor(2.5), "empty": torch.empty(0, 4, dtype=torch.bfloat16), "empty.u8": torch.empty(3, 0, dtype=torch.uint8),
        "not finite": torch.tensor([float("nan"), float("inf"), -0.0]),
        'quote " backslash \\ tab \t newline \n bell \x07 del \x7f é 漢 🙂': torch.ones(1),
    }
    # Names in an order that is neither that of insertion nor of creation.
    for i in (10, 9, 2, 1):
        tensors[f"model.layers.{i}.weight"] = torch.full((i,), float(i))
    return tensors


class SafetensorsAgrees(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = pathlib.Path(directory.name)

    def copy(self, source):
        target = self.dir / "copy.safetensors"
        subprocess.run([SAMPLE, "copy", source, target], check=True)
        return target

    def test_a_file_of_the_library_is_copied_byte_for_byte(self):
        original = self.dir / "original.safetensors"
        save_file(sample_tensors(), original, metadata={"format": "pt"})
        self.assertEqual(self.copy(original).read_bytes(), original.read_bytes())

    def test_the_library_reads_what_we_write(self):
        original = self.dir / "original.safetensors"
        save_file(sample_tensors(), original)  # without metadata: the copy gains format pt
        copy = self.copy(original)
        loaded = load_file(copy)
        self.assertEqual(loaded.keys(), sample_tensors().keys())
        for name, tensor in sample_tensors().items():
            self.assertEqual(loaded[name].dtype, tensor.dtype, name)
            self.assertEqual(loaded[name].shape, tensor.shape, name)
            self.assertTrue(torch.equal(loaded[name].nan_to_num(nan=7.0), tensor.nan_to_num(nan=7.0)), name)
        with safe_open(copy, "pt") as file:
            self.assertEqual(file.metadata(), {"format": "pt"})

    def test_damaged_headers_are_judged_as_the_library_judges_them(self):
        header = {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "b": {"dtype": "U8", "shape": [5], "data_offsets": [24, 29]},
            "c": {"dtype": "BF16", "shape": [0, 7], "data_offsets": [29, 29]},
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        rng = random.Random(5)
        paths = []
        for i in range(1500):
            damaged = bytearray(text)
            for _ in range(rng.choice((0, 1, 1, 2))):
                at = rng.randrange(len(damaged))
                kind = rng.randrange(4)
                if kind == 0:
                    damaged[at] = rng.randrange(256)
                elif kind == 1:
                    del damaged[at]
                elif kind == 2:
                    damaged.insert(at, rng.choice(b'0123456789[]{},:" '))
                elif damaged[at] in b"0123456789":
                    damaged[at] = rng.choice(b"0123456789")
            path = self.dir / f"{i}.safetensors"
            path.write_bytes(struct.pack("<Q", len(damaged)) + damaged + bytes(29))
            paths.append(path)
        verdicts = subprocess.run([SAMPLE, "check", *paths], check=True, capture_output=True, text=True).stdout.split()
        self.assertEqual(len(verdicts), len(paths))
        num_ok = 0
        for path, verdict in zip(paths, verdicts):
            try:
                with safe_open(path, "np") as file:
                    file.keys()
                valid = True
            except SafetensorError:
                valid = False
            num_ok += valid
            self.assertEqual(verdict, "ok" if valid else "refused", path.read_bytes())
        self.assertTrue(200 < num_ok < 1400, num_ok)


if __name__ == "__main__":
    SAMPLE = sys.argv.pop(1)
    unittest.main(verbosity=2)
