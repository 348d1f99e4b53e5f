#!/usr/bin/env python3
"""Compares ways to train an evictor on held-out text: what a token of training buys.

usage: tools/compare_schedules.py [--ratios 4,8,16] [--official-tokens 102400] [--warm-tokens 65536] [--steps 24]
                                  [--vary KEY=A,B ...] [--equal-memory] [--out quickstart/schedules] [--dms build/dms]
                                  [--no-baselines] ...

For each compression ratio: the official schedule (a linear adapter without per-head bias, shift 1, reverse KL, the ratio
rising from 1x over 15/16 of the steps, constant learning rate), the warm start alone, the warm start followed by --steps
steps of distillation as the recipe has them, and that again with each value of each --vary, one at a time; all on the
quickstart's data in sequences of 1024 tokens, window 64.  Then `dms eval`, with streaming (4 sinks + window) at the same
memory beside each.  What is trained to one ratio does not keep equally much on other text: with --equal-memory each
evictor's threshold is moved first, on training text, so that of the keys beyond the window one in RATIO stays.
0 official tokens, or 0 steps, leave these rows out.  A run or evaluation that is there already is not made again, so a sweep
can be interrupted and widened.  Writes DIR/schedules.json and prints a table.  Run tools/quickstart.sh first, for model and
data.
"""

import argparse
import json
import pathlib
import subprocess
import sys

LENGTH, WINDOW = 1024, 64
HELD_OUT = ["perl", "git", "postgresql"]


def official(ratio, tokens):
    steps = max(16, tokens // LENGTH)
    return [
        "adapter.bias=none", "eviction.decision_shift=1", "eviction.truncate_at=1e9", "compression.initial=1",
        f"compression.final={ratio}", f"compression.ramp_steps={steps * 15 // 16}", "compression.count=straight_through",
        "compression.loss_weight=1", "distillation.kl=reverse", "warm_start.tokens=0", f"trainer.steps={steps}",
        "trainer.learning_rate=3e-5", "trainer.schedule=constant",
    ]  # fmt: skip


def memory_ratio(ratio):
    """What a cache of LENGTH tokens shrinks to when one in `ratio` of the keys beyond the window stays."""
    return LENGTH / (WINDOW + 1 + (LENGTH - WINDOW - 1) / ratio)


def warm(ratio, tokens, steps, *changes):
    return [
        f"warm_start.tokens={tokens}", f"warm_start.compression={ratio}", f"compression.initial={ratio}",
        f"compression.final={ratio}", f"trainer.steps={steps}", *changes,
    ]  # fmt: skip


def ways_to(ratio, arguments):
    """Name of each row -> what it changes in the recipe."""
    tokens, steps = arguments.warm_tokens, arguments.steps
    ways = {}
    if arguments.official_tokens:
        ways[f"official {arguments.official_tokens}"] = official(ratio, arguments.official_tokens)
    ways[f"warm start {tokens}"] = warm(ratio, tokens, 0)
    if steps:
        distilled = f"warm start {tokens} + {steps} steps"
        ways[distilled] = warm(ratio, tokens, steps)
        for varied in arguments.vary:
            key, values = varied.split("=")
            for value in values.split(","):
                ways[f"{distilled}, {key}={value}"] = warm(ratio, tokens, steps, f"{key}={value}")
    return ways


def run_once(arguments, directory, overrides, ratio):
    """The evaluation of one run, made unless it is there."""
    result = directory / ("eval-equal-memory.json" if arguments.equal_memory else "eval.json")
    if not result.exists():
        train = [arguments.dms, "train", arguments.recipe, *overrides, "--run-dir", str(directory / "run"), "--resume"]
        subprocess.run(train, check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr)
        data = [f"{arguments.quickstart}/held-out-{name}.h5" for name in HELD_OUT]
        subprocess.run(
            [arguments.dms, "eval", "--model", f"{arguments.quickstart}/model", "--adapters", str(directory / "run"),
             "--data", *data, "--max-tokens", str(arguments.eval_tokens), "--json", str(result),
             *(["--no-baselines"] if arguments.no_baselines else []),
             *(["--target-ratio", f"{memory_ratio(ratio):.4f}", "--calibration", f"{arguments.quickstart}/train.h5",
                "--calibration-tokens", str(arguments.eval_tokens)]
               if arguments.equal_memory else [])],
            check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr)  # fmt: skip
    return json.loads(result.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dms", default="build/dms")
    parser.add_argument("--recipe", default="recipes/smollm2-135m.yaml")
    parser.add_argument("--quickstart", default="quickstart")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("quickstart/schedules"))
    parser.add_argument("--ratios", default="4,8,16")
    parser.add_argument("--official-tokens", type=int, default=102400)
    parser.add_argument("--warm-tokens", type=int, default=65536)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--vary", action="append", default=[], metavar="KEY=A,B")
    parser.add_argument("--eval-tokens", type=int, default=4096, help="of each held-out set; also to find a threshold on")
    parser.add_argument("--equal-memory", action="store_true", help="move each evictor to its target's memory")
    parser.add_argument("--no-baselines", action="store_true", help="leave out sinks + window: a third of the time")
    arguments = parser.parse_args()

    rows = []
    print("| target | training | tokens | KV memory | KL | KL, 2nd half | sinks + window, 2nd half |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for ratio in arguments.ratios.split(","):
        for name, overrides in ways_to(ratio, arguments).items():
            directory = arguments.out / f"{ratio}x {name}".replace(" ", "-")
            directory.mkdir(parents=True, exist_ok=True)
            result = run_once(arguments, directory, overrides, float(ratio))
            settings = dict(override.split("=") for override in overrides)
            tokens = int(settings["warm_start.tokens"]) + LENGTH * int(settings["trainer.steps"])
            row = {"target": float(ratio), "training": name, "tokens": tokens, "overrides": overrides}
            row |= {key: result[key] for key in ("kv_memory_ratio", "kl_mean", "kl_mean_second_half")}
            streaming = result.get("streaming_llm")
            row["streaming_kl_mean_second_half"] = streaming and streaming["kl_mean_second_half"]
            rows.append(row)
            print(f"| {ratio}x | {name} | {tokens // 1000}k | {row['kv_memory_ratio']:.2f}x | {row['kl_mean']:.3f} | "
                  f"{row['kl_mean_second_half']:.3f} | "
                  + (f"{streaming['kl_mean_second_half']:.3f} |" if streaming else "|"), flush=True)
    (arguments.out / "schedules.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
