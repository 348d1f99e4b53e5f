"""Exports for NVIDIA's DMS code, run by a restatement of it in float64 (nvidia_dms.py), against `dms eval`.

Usage: export_nvidia_reference.py PATH_TO_DMS PATH_TO_HARD_LOGITS_SAMPLE [unittest arguments]
"""

import json
import os
import shutil
import sys
import unittest

import nvidia_dms
from exported_model import TEMPORARY, Exported, hard_path, random_tokens

import torch

WINDOW = 260  # must exceed their paged block of 256
VARIANTS = {
    "linear": dict(adapter="linear", bias="none"),
    "linear-bias": dict(adapter="linear", alpha_scale=200.0, alpha_offset=30.0),
    "neuron": dict(adapter="neuron", bias="none", channel="last", zero_after_rope=True),
    "neuron-rank-3": dict(adapter="neuron", bias="none", channel="last", zero_after_rope=True, rank=3, seed=4),
}


class Nvidia(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.exports = {
            name: Exported(DMS, "nvidia-" + name, "nvidia", family="qwen3", window=WINDOW, **options)
            for name, options in VARIANTS.items()
        }

    def test_logits_and_decisions_equal_those_of_eval(self):
        tokens = random_tokens(1, 420)[0].tolist()
        for name, export in self.exports.items():
            with self.subTest(name):
                logits, eviction = nvidia_dms.run(export.path, tokens)
                expected, expected_eviction = hard_path(SAMPLE, export.base, export.sidecar, tokens, 64)
                far = 0
                for mine, theirs in zip(expected_eviction, eviction):
                    clear = mine.abs() > 1e-3
                    self.assertTrue(torch.equal(mine[clear] > 0, theirs[clear] > 0))
                    far += (mine[:, 1 : 420 - WINDOW] > 0).sum().item()
                self.assertGreater(far, 50)  # tokens that leave the window evicted
                self.assertLess((logits - expected.double()).abs().max().item(), 2e-4)

    def test_config(self):
        for name, export in self.exports.items():
            with self.subTest(name), open(os.path.join(export.path, "config.json")) as file:
                config = json.load(file)
                self.assertEqual(config["dms_separate_alpha"], name.startswith("linear"))
                self.assertEqual(config["dms_window_size"], WINDOW)
                self.assertEqual(config["dms_cr"], 4)
                self.assertIsInstance(config["dms_cr"], int)
                self.assertNotIn("auto_map", config)
                self.assertFalse([file for file in os.listdir(export.path) if file.endswith(".py")])
                # Keys that the release of transformers their code pins reads.
                self.assertEqual((config["rope_theta"], config["rope_scaling"]), (1000.0, None))
                self.assertNotIn("rope_parameters", config)

    def test_what_it_cannot_hold_is_refused_with_the_remedy(self):
        good = dict(family="qwen3", adapter="neuron", window=WINDOW, bias="none", channel="last", zero_after_rope=True)
        for change, remedy in (
            (dict(family="llama"), "qwen3 models only"),
            (dict(decision_shift=0), "eviction.decision_shift: 1"),
            (dict(window=256), "eviction.window: 257 or more"),
            (dict(zero_after_rope=False), "adapter.zero_after_rope: true"),
            (dict(bias="per_head"), "adapter.bias: none"),
            (dict(channel="any"), "adapter.channel: last"),
            (dict(adapter="linear", bias="per_head", seed=1), "adapter.bias: none"),
        ):
            with self.subTest(remedy), self.assertRaisesRegex(RuntimeError, remedy):
                Exported(DMS, "refused", "nvidia", **(good | change))
            shutil.rmtree(os.path.join(TEMPORARY, "refused"))


if __name__ == "__main__":
    DMS, SAMPLE = sys.argv[1:3]
    try:
        unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
    finally:
        shutil.rmtree(TEMPORARY)
