#!/usr/bin/env python3
"""Compares the memory that `dms plan` foretells with what `dms train` then takes.

usage: tools/check_plan.py [--dms build/dms] [--model DIR] [--quick] [--only TEXT] [--tolerance 0.05]

Each case is planned and trained for one step on the CPU, in float32.  Measured: the peak resident set of rank 0 up to
the end of the step (a process that ends touches pages of its libraries again), less the process itself: what as many
ranks take beyond the plan for a model of no size.
The model, by default quickstart/model where it is there, is tried at several lengths, placements and activation
plans; random models besides it.  --quick: random models only.  Exit status 1 if any case is off by more than the
tolerance.  Needs nothing but Python.
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


class Case:
    def __init__(self, model, tokens, placement, ranks, checkpointing, *more):
        self.model, self.tokens, self.ranks = model, tokens, ranks
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


def planned(dms, case, directory):
    subprocess.run([dms, "plan", "recipe.yaml", "--nproc", str(case.ranks), "--json", "plan.json", *case.overrides],
                   cwd=directory, check=True, stdout=subprocess.DEVNULL)
    return json.loads((directory / "plan.json").read_text())


def measured(dms, case, directory):
    run = directory / "run"
    shutil.rmtree(run, ignore_errors=True)
    end = subprocess.run([dms, "train", "recipe.yaml", "--run-dir", run, "--nproc", str(case.ranks), *case.overrides],
                         cwd=directory, env=dict(os.environ, OMP_NUM_THREADS="1"), capture_output=True, text=True)
    if end.returncode != 0:
        sys.exit(f"{case.name}: exit code {end.returncode}\n{end.stderr}")
    return json.loads((run / "metrics.jsonl").read_text())["peak_memory_bytes"]


def cases_of(model, lengths, placements):
    for tokens, (placement, ranks, checkpointing) in itertools.product(lengths, placements):
        yield Case(model, tokens, placement, ranks, checkpointing)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dms", default="build/dms")
    parser.add_argument("--model", default="quickstart/model")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--tolerance", type=float, default=0.05)
    arguments = parser.parse_args()
    dms = str(pathlib.Path(arguments.dms).resolve())

    with tempfile.TemporaryDirectory(prefix="dms-plan-") as name:
        directory = pathlib.Path(name)
        (directory / "recipe.yaml").write_text(RECIPE)
        cases = []
        for model, shape in RANDOM_MODELS.items():
            (directory / model).mkdir()
            random_model.write_model(directory / model, shape)
            random_model.write_tokens(dms, directory / model, directory / f"{model}.h5", words=12000)
            lengths = [512] if arguments.quick else [512, 2048]
            cases += cases_of(directory / model, lengths, ON_ONE_RANK + ON_TWO_RANKS)
            cases.append(Case(directory / model, 512, "replicate", 1, "full", "warm_start.tokens=16384"))
        model = pathlib.Path(arguments.model).resolve()
        if not arguments.quick and (model / "config.json").exists():
            random_model.write_tokens(dms, model, directory / f"{model.name}.h5", words=12000)
            cases += cases_of(model, [256, 512, 1024, 2048], ON_ONE_RANK)
            cases += cases_of(model, [256, 1024], ON_TWO_RANKS)
            cases.append(Case(model, 512, "replicate", 1, "full", "warm_start.tokens=8192"))

        (directory / "nothing").mkdir()
        random_model.write_model(directory / "nothing")
        random_model.write_tokens(dms, directory / "nothing", directory / "nothing.h5")
        base = {}
        for ranks in (1, 2):
            nothing = Case(directory / "nothing", 128, "replicate", ranks, "full")
            base[ranks] = measured(dms, nothing, directory) - planned(dms, nothing, directory)["per_rank_bytes"]["total"]
        of_plan = planned(dms, nothing, directory)["process_bytes"]
        print(f"process itself: {base[1] / 2**20:.0f} MiB alone, {base[2] / 2**20:.0f} MiB as one of two ranks; the plan "
              f"says {of_plan / 2**20:.0f}\nMiB beyond it:\n{'planned':>8} {'measured':>8}     off  case")
        worst = 0.0
        for case in cases:
            case_name = case.name.replace(f"{directory}/", "")
            if arguments.only not in case_name:
                continue
            expected = planned(dms, case, directory)["per_rank_bytes"]["total"]
            found = measured(dms, case, directory) - base[case.ranks]
            off = found / expected - 1.0
            worst = max(worst, abs(off))
            print(f"{expected / 2**20:8.1f} {found / 2**20:8.1f} {100 * off:+6.1f}%  {case_name}", flush=True)
        print(f"off by {100 * worst:.1f}% at most")
        sys.exit(worst > arguments.tolerance)


if __name__ == "__main__":
    main()
