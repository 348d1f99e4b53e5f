#!/usr/bin/env python3
"""Adds what the quickstart cost to what `dms eval` measured, as DIR/summary.json, and prints the headline figures.

Usage: quickstart_summary.py DIR
"""

import json
import pathlib
import sys


def stage_seconds(directory):
    """Stage -> seconds it took when it last did its work (second line of its stamp)."""
    return {stamp.name: int(stamp.read_text().split()[1]) for stamp in sorted((directory / "stamps").iterdir())}


def write_summary(directory):
    summary = json.loads((directory / "eval.json").read_text())
    steps = [json.loads(line) for line in (directory / "run/metrics.jsonl").read_text().splitlines()]
    seconds = sum(step["seconds"] for step in steps)
    tokens = sum(step["tokens_per_s"] * step["seconds"] for step in steps)
    stages = stage_seconds(directory)
    summary |= {
        "wall_seconds": sum(stages.values()),
        "stage_seconds": stages,
        "steps": len(steps),
        "tokens_per_s": tokens / seconds if seconds else None,
        "peak_memory_bytes": max((step["peak_memory_bytes"] for step in steps), default=None),
    }
    partial = directory / "summary.json.partial"
    partial.write_text(json.dumps(summary, indent=1) + "\n")
    partial.replace(directory / "summary.json")
    return summary


def print_headline(summary):
    streaming, sliding = summary["streaming_llm"], summary["sliding_window"]
    print(f"\nKV cache {summary['kv_memory_ratio']:.2f} times smaller on held-out text of "
          f"{summary['sequence_length']} tokens, at the cost of (KL in nats/token, all at the same memory):")
    print(f"  {'':<22}{'whole sequence':>16}{'second half':>14}")
    for name, figures in (("this evictor", summary), ("sinks + window", streaming), ("sliding window", sliding)):
        print(f"  {name:<22}{figures['kl_mean']:>16.4f}{figures['kl_mean_second_half']:>14.4f}")
    print(f"perplexity {summary['ppl_teacher']:.2f} -> {summary['ppl_student']:.2f}; "
          f"same next token in {100 * summary['top1_agreement']:.1f}% of the places")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print_headline(write_summary(pathlib.Path(sys.argv[1])))
