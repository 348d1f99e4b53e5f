#!/usr/bin/env python3
"""Measures what several ranks lose by working together.

usage: tools/rank_overlap.py [--dms build/dms] [--model quickstart/model] [--nproc 2] [--tokens 512] [--sequences 1]
                             [--steps 4] [--rounds 1] [--placement replicate,shard] [--activations full]

For each placement: one run of --nproc ranks with one thread each, and as many *independent* runs of one rank and one
thread at the same time, each on a share of the batch (--sequences a rank and step).  Printed is the former's tokens/s
over the sum of the latter's, from the median seconds of the steps after the first, and where each rank's time went.
The independent runs keep whole weights (one rank has nothing to share) and use the same activation plan.  Rounds
alternate between the two; the median over rounds counts.  Needs nothing but Python; a quiet machine with as many cores
as ranks.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

import random_model

RECIPE = """
model: {{path: {model}}}
data: {{train: [train.h5]}}
eviction: {{window: 64}}
compression: {{initial: 4, final: 4}}
warm_start: {{tokens: 0}}
trainer: {{steps: {steps}, sequence_length: {tokens}, dtype: float32, device: cpu, checkpoint_every: 1000000}}
"""


class Measurement:
    def __init__(self, arguments, directory):
        self.dms, self.directory, self.ranks = str(pathlib.Path(arguments.dms).resolve()), directory, arguments.nproc
        self.tokens, self.sequences, self.activations = arguments.tokens, arguments.sequences, arguments.activations

    def start(self, run, ranks, placement):
        shutil.rmtree(self.directory / run, ignore_errors=True)
        return subprocess.Popen(
            [self.dms, "train", "recipe.yaml", "--run-dir", run, "--nproc", str(ranks),
             f"trainer.global_batch={ranks * self.sequences}", f"trainer.placement={placement}",
             f"trainer.activation_checkpointing={self.activations}"],
            cwd=self.directory, env=dict(os.environ, OMP_NUM_THREADS="1"), stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True)

    def finish(self, processes):
        for run, process in processes.items():
            errors = process.communicate()[1]
            if process.returncode != 0:
                sys.exit(f"{run}: exit code {process.returncode}\n{errors}")

    def steps(self, run):
        """The steps' metrics; the first also brings in the weights."""
        return [json.loads(line) for line in (self.directory / run / "metrics.jsonl").open()][1:]

    def tokens_per_s(self, run, ranks):
        return ranks * self.sequences * self.tokens / statistics.median(step["seconds"] for step in self.steps(run))

    def together(self, placement):
        """Tokens/s, and each rank's share of time spent waiting for others."""
        self.finish({"together": self.start("together", self.ranks, placement)})
        waits = [statistics.median(step["rank_communication_seconds"][r] / step["rank_seconds"][r]
                                   for step in self.steps("together")) for r in range(self.ranks)]
        return self.tokens_per_s("together", self.ranks), waits

    def apart(self):
        runs = [f"apart-{r}" for r in range(self.ranks)]
        self.finish({run: self.start(run, 1, "replicate") for run in runs})
        return sum(self.tokens_per_s(run, 1) for run in runs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dms", default="build/dms")
    parser.add_argument("--model", default="quickstart/model")
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--sequences", type=int, default=1, help="a rank and step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--placement", default="replicate,shard")
    parser.add_argument("--activations", default="full", help="the other plans keep every layer's weights")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps: at least 2, since the first is not counted")
    with tempfile.TemporaryDirectory(prefix="dms-overlap-") as name:
        directory = pathlib.Path(name)
        model = pathlib.Path(arguments.model).resolve()
        (directory / "recipe.yaml").write_text(
            RECIPE.format(model=model, steps=arguments.steps, tokens=arguments.tokens))
        random_model.write_tokens(arguments.dms, model, directory / "train.h5", words=12000)
        measurement = Measurement(arguments, directory)
        placements = arguments.placement.split(",")
        apart, together = [], {placement: [] for placement in placements}
        for _ in range(arguments.rounds):
            apart.append(measurement.apart())
            for placement in placements:
                together[placement].append(measurement.together(placement))
        print(f"{arguments.nproc} runs apart: {statistics.median(apart):.1f} tokens/s in all "
              f"({', '.join(f'{x:.1f}' for x in apart)})")
        for placement in placements:
            ratios = [rate / alone for (rate, _), alone in zip(together[placement], apart)]
            waits = "; ".join(", ".join(f"{100 * wait:.1f}%" for wait in waits) for _, waits in together[placement])
            print(f"{arguments.nproc} ranks, {placement}: {statistics.median(ratios):.3f} of that "
                  f"({', '.join(f'{ratio:.3f}' for ratio in ratios)}); waiting per rank: {waits}")


if __name__ == "__main__":
    main()
