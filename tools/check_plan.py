#!/usr/bin/env python3
"""Compares the memory that `dms plan` foretells with what `dms train` then takes.

usage: tools/check_plan.py [--dms build/dms] [--model DIR] [--quick] [--only TEXT] [--tolerance 0.05]

Each case is planned and trained for one step on the CPU, in float32.  Measured: the peak resident set of rank 0 up to
the end of the step (a process that ends touches pages of its libraries again), less the process itself: what as many
ranks take beyond the plan for a small model.  What the plan states for the process is checked too.
The model, by default quickstart/model where it is there, is tried at several lengths, placements and activation
plans; random models besides it.  --quick: some of the random models' cases.  Exit status 1 if any case is off by more
than the tolerance and by more than a process without a model varies, 4 MiB.  Needs nothing but Python.
"""

import argparse
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import random_model

MIB = 2**20
# One whose weights weigh most, one whose activations do, one whose head does.
RANDOM_MODELS = {
    "weights": random_model.Shape(layers=6, hidden=1024, heads=16, kv_heads=4, head_dim=64, inner=2816, vocabulary=2048),
    "activations": random_model.Shape(layers=16, hidden=256, heads=8, kv_heads=2, head_dim=32, inner=768,
                                      vocabulary=512),
    "head": random_model.Shape(layers=4, hidden=384, heads=6, kv_heads=6, head_dim=64, inner=1024, vocabulary=65536,
                               tied=False),
}
ON_ONE_RANK = [("replicate", 1, "none"), ("replicate", 1, "selective"), ("replicate", 1, "full"), ("host", 1, "full")]
ON_TWO_RANKS = [("replicate", 2, "none"), ("shard", 2, "full")]
WARM_START = ("replicate", 1, "full", "warm_start.tokens=16384")
QUICK = {"activations": [("replicate", 1, "none"), ("replicate", 1, "selective"), WARM_START],
         "head": [("replicate", 1, "full"), ("shard", 2, "full")]}
# Small, but of sizes for which matrix products take the same code as a model's.
SMALL = random_model.Shape(layers=2, hidden=256, heads=4, kv_heads=2, head_dim=64, inner=768, vocabulary=2048)
# How far the process itself may be from what the plan states: which of its libraries' pages are in memory depends on
# the machine.
PROCESS_TOLERANCE = 16 * MIB
# By how much one process differs from the next on one machine.
PROCESS_NOISE = 4 * MIB


class Case:
    def __init__(self, model, tokens, placement, ranks, checkpointing, *more):
        self.model, self.ranks = model, ranks
        self.overrides = [
            f"model.path={model}", f"data.train=[{model.name}.h5]", f"trainer.sequence_length={tokens}",
            f"trainer.placement={placement}", f"trainer.activation_checkpointing={checkpointing}", *more]
        self.name = f"{model.name} T={tokens} {placement} x{ranks} {checkpointing} {' '.join(more)}".strip()


RECIPE = """
model: {path: model}
data: {train: [train.h5]}
eviction: {window: 64}
compression: {initial: 4, final: 4}
warm_start: {tokens: 0}
trainer: {steps: 1, global_batch: 2, sequence_length: 1024, dtype: float32, device: cpu}
"""


class Bench:
    """Plans and runs in a directory of its own."""

    def __init__(self, dms, directory):
        self.dms, self.directory, self.of_process = dms, directory, {}
        (directory / "recipe.yaml").write_text(RECIPE)

    def write_model(self, name, shape):
        (self.directory / name).mkdir()
        random_model.write_model(self.directory / name, shape)

    def write_tokens(self, model):
        random_model.write_tokens(self.dms, model, self.directory / f"{model.name}.h5", words=12000)

    def planned(self, case):
        subprocess.run([self.dms, "plan", "recipe.yaml", "--nproc", str(case.ranks), "--json", "plan.json",
                        *case.overrides], cwd=self.directory, check=True, stdout=subprocess.DEVNULL)
        return json.loads((self.directory / "plan.json").read_text())

    def measured(self, case):
        """Of rank 0."""
        run = self.directory / "run"
        shutil.rmtree(run, ignore_errors=True)
        end = subprocess.run(
            [self.dms, "train", "recipe.yaml", "--run-dir", run, "--nproc", str(case.ranks), *case.overrides],
            cwd=self.directory, env=dict(os.environ, OMP_NUM_THREADS="1"), capture_output=True, text=True)
        if end.returncode != 0:
            sys.exit(f"{case.name}: exit code {end.returncode}\n{end.stderr}")
        return json.loads((run / "metrics.jsonl").read_text())["peak_memory_bytes"]

    def small_case(self, ranks):
        small = self.directory / "small"
        if not small.exists():
            self.write_model(small.name, SMALL)
            self.write_tokens(small)
        return Case(small, 256, "replicate", ranks, "full", f"trainer.global_batch={max(2, ranks)}")

    def process_bytes(self, ranks):
        """What one of so many ranks takes beyond its plan when the model is small, and what the plan states."""
        if ranks not in self.of_process:
            case = self.small_case(ranks)
            plan = self.planned(case)
            self.of_process[ranks] = (self.measured(case) - plan["per_rank_bytes"]["total"], plan["process_bytes"])
        return self.of_process[ranks]


def cases_of(model, lengths, placements):
    for tokens, placement in itertools.product(lengths, placements):
        yield Case(model, tokens, *placement)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dms", default="build/dms")
    parser.add_argument("--model", default="quickstart/model")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--tolerance", type=float, default=0.05)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="dms-plan-") as name:
        directory = pathlib.Path(name)
        bench = Bench(str(pathlib.Path(arguments.dms).resolve()), directory)
        cases = []
        if arguments.quick:
            for name, placements in QUICK.items():
                cases += cases_of(directory / name, [512], placements)
        else:
            for name in RANDOM_MODELS:
                cases += cases_of(directory / name, [512, 2048], ON_ONE_RANK + ON_TWO_RANKS)
                cases += cases_of(directory / name, [512], [WARM_START])
            model = pathlib.Path(arguments.model).resolve()
            if (model / "config.json").exists():
                cases += cases_of(model, [512, 1024, 2048, 4096], ON_ONE_RANK)
                cases += cases_of(model, [512, 1024, 2048], ON_TWO_RANKS)
                cases += cases_of(model, [512], [WARM_START])
        cases = [case for case in cases if arguments.only in case.name]
        for asked in {case.model for case in cases}:
            if asked.parent == directory:
                bench.write_model(asked.name, RANDOM_MODELS[asked.name])
            bench.write_tokens(asked)

        failed = False
        for ranks in sorted({case.ranks for case in cases}):
            found, stated = bench.process_bytes(ranks)
            print(f"process itself, one of {ranks}: {found / MIB:.0f} MiB; the plan says {stated / MIB:.0f}")
            failed |= abs(found - stated) > PROCESS_TOLERANCE
        print(f"MiB beyond it:\n{'planned':>8} {'measured':>8}     off  case")
        worst = 0.0
        for case in cases:
            expected = bench.planned(case)["per_rank_bytes"]["total"]
            found = bench.measured(case) - bench.process_bytes(case.ranks)[0]
            off = found / expected - 1.0
            worst = max(worst, abs(off))
            failed |= abs(found - expected) > max(arguments.tolerance * expected, PROCESS_NOISE)
            print(f"{expected / MIB:8.1f} {found / MIB:8.1f} {100 * off:+6.1f}%  {case.name}", flush=True)
        print(f"off by {100 * worst:.1f}% at most")
        sys.exit(failed)


if __name__ == "__main__":
    main()
