#!/usr/bin/env python3
"""tools/quickstart_summary.py: what it adds to the evaluation's figures."""

import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

import quickstart_summary

EVALUATION = {"kv_memory_ratio": 5.5, "kl_mean": 0.1, "sets": {"perl": {"kl_mean": 0.2}}}


class Summary(unittest.TestCase):
    def write(self, steps):
        self.directory = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        (self.directory / "eval.json").write_text(json.dumps(EVALUATION))
        (self.directory / "run").mkdir()
        (self.directory / "run/metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        (self.directory / "stamps").mkdir()
        (self.directory / "stamps/train").write_text("abc\n300\n")
        (self.directory / "stamps/setup").write_text("-\n45\n")
        quickstart_summary.write_summary(self.directory)
        return json.loads((self.directory / "summary.json").read_text())

    def test_figures_of_the_evaluation_are_kept_and_costs_added(self):
        summary = self.write([{"seconds": 1.0, "tokens_per_s": 100.0, "peak_memory_bytes": 7},
                              {"seconds": 3.0, "tokens_per_s": 300.0, "peak_memory_bytes": 9},
                              {"seconds": 1.0, "tokens_per_s": 100.0, "peak_memory_bytes": 8}])
        self.assertEqual({key: summary[key] for key in EVALUATION}, EVALUATION)
        self.assertEqual(summary["wall_seconds"], 345)
        self.assertEqual(summary["stage_seconds"], {"setup": 45, "train": 300})
        self.assertEqual(summary["steps"], 3)
        self.assertEqual(summary["tokens_per_s"], 220.0)  # 1100 tokens in 5 seconds, not the mean of the rates
        self.assertEqual(summary["peak_memory_bytes"], 9)

    def test_a_run_of_the_warm_start_alone_has_no_speed(self):
        summary = self.write([])
        self.assertEqual((summary["steps"], summary["tokens_per_s"], summary["peak_memory_bytes"]), (0, None, None))


if __name__ == "__main__":
    unittest.main()
