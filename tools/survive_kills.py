#!/usr/bin/env python3
"""Kills training runs at random points and demands that each resumes to the last bit.

usage: tools/survive_kills.py [--dms build/dms] [--points 200] [--nproc 2] [--seed 1]

Trains a tiny random model once without disturbance.  Then, --points times: starts the same run, sends SIGKILL to its
launcher and all its ranks at a random moment, checks that nothing incomplete has a final name, resumes (on another
number of ranks), and compares losses, adapter and optimizer with the undisturbed run.  Needs nothing but Python.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import random_model

STEPS = 10

RECIPE = f"""
model: {{path: model}}
data: {{train: [train.h5]}}
eviction: {{window: 8}}
compression: {{initial: 1.5, final: 2.0, ramp_steps: 4}}
warm_start: {{tokens: 256}}
trainer: {{steps: {STEPS}, global_batch: 4, sequence_length: 64, checkpoint_every: 1, keep: 3, dtype: float32}}
"""


def write_inputs(dms, directory):
    """A model, a recipe and a token file."""
    (directory / "model").mkdir()
    random_model.write_model(directory / "model")
    (directory / "recipe.yaml").write_text(RECIPE)
    random_model.write_tokens(dms, directory / "model", directory / "train.h5")


def outcome(run):
    """What two runs must have in common: losses, adapter, optimizer."""
    losses = [(r["step"], r["loss"], r["grad_norm"]) for r in map(json.loads, (run / "metrics.jsonl").open())]
    last = run / "checkpoints" / f"step-{STEPS:06d}"
    return losses, [(last / f"{n}.safetensors").read_bytes() for n in ("adapters", "optimizer")]


def incomplete_files(run):
    """Checkpoints under a final name that their manifest does not describe to the byte."""
    wrong = []
    for checkpoint in (run / "checkpoints").glob("step-??????"):
        manifest = checkpoint / "manifest.json"
        if not manifest.exists():
            wrong.append(f"{checkpoint.name}: no manifest")
            continue
        for name, listed in json.loads(manifest.read_text())["files"].items():
            data = (checkpoint / name).read_bytes() if (checkpoint / name).exists() else b""
            if len(data) != listed["bytes"] or hashlib.sha256(data).hexdigest() != listed["sha256"]:
                wrong.append(f"{checkpoint.name}/{name}")
    return wrong


class Runs:
    def __init__(self, dms, directory, nproc):
        self.dms, self.directory, self.nproc = dms, directory, nproc
        self.environment = dict(os.environ, OMP_NUM_THREADS="1")

    def command(self, run, nproc, *more):
        return [self.dms, "train", "recipe.yaml", "--run-dir", run, "--nproc", str(nproc), *more]

    def finish(self, run, nproc, *more):
        end = subprocess.run(self.command(run, nproc, *more), cwd=self.directory, env=self.environment,
                             capture_output=True, text=True)
        if end.returncode != 0:
            sys.exit(f"{run}: exit code {end.returncode}\n{end.stderr}")

    def kill_after(self, run, seconds):
        """True when the run was still going."""
        process = subprocess.Popen(self.command(run, self.nproc), cwd=self.directory, env=self.environment,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(seconds)
        going = process.poll() is None
        if going:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return going


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dms", default="build/dms")
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)

    with tempfile.TemporaryDirectory(prefix="dms-kills-") as name:
        directory = pathlib.Path(name)
        dms = str(pathlib.Path(arguments.dms).resolve())
        write_inputs(dms, directory)
        runs = Runs(dms, directory, arguments.nproc)
        begin = time.monotonic()
        runs.finish("undisturbed", arguments.nproc)
        duration = time.monotonic() - begin
        expected = outcome(directory / "undisturbed")

        killed = 0
        for point in range(arguments.points):
            run = f"run-{point}"
            seconds = rng.uniform(0.0, duration)
            killed += runs.kill_after(run, seconds)
            wrong = incomplete_files(directory / run)
            if wrong:
                sys.exit(f"point {point}, killed after {seconds:.3f} s: incomplete under a final name: {wrong}")
            runs.finish(run, rng.choice([1, 2, 4]), "--resume")
            if outcome(directory / run) != expected:
                sys.exit(f"point {point}, killed after {seconds:.3f} s: the resumed run differs from the undisturbed one")
            left = [p.name for p in (directory / run / "checkpoints").iterdir() if "." in p.name]
            if left:
                sys.exit(f"point {point}: left behind: {left}")
        if killed == 0:
            sys.exit("no run was killed before it had ended")
        print(f"{arguments.points} of {arguments.points} resumed to the last bit ({killed} killed before their end)")


if __name__ == "__main__":
    main()
