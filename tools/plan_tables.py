#!/usr/bin/env python3
"""Writes recipes/plans.md: what each recipe for a target model costs, as `dms plan` computes it.

usage: tools/plan_tables.py [--dms build/dms] [--check]

Only config.json of each model is needed; the released ones lie in tests/model/configs.  --check: writes nothing and
ends with 1 if the page is not what it would write.  Needs nothing but Python.
"""

import argparse
import difflib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "recipes" / "plans.md"
GIB = 2**30

HEAD = """\
# What the recipes cost

Written by `tools/plan_tables.py` from `dms plan --json`; do not edit. **Nothing here has been measured**: bytes are
computed from each model's config.json, seconds from data-sheet rates of the H100 SXM ({source}; {efficiency:.0%} of
the GEMM rate assumed). `dms plan RECIPE --device h100 --rates FILE` replaces the rates by measured ones.

GiB are per GPU, beside {process:.1f} GiB for the process (CUDA context and workspaces: assumed); "peak" is the most
that is there at a time. Placement and activation plan are what `auto` settles for. A dash: it does not fit.
"""

COLUMNS = ("| recipe | tokens a sequence | placement, activations | weights | activations | head | warm start | peak | step | "
           "tokens | hours | longest that fits |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n")


def plan(dms, recipe, config, ranks, directory):
    """The plan as JSON."""
    model = directory / recipe.stem
    model.mkdir(exist_ok=True)
    shutil.copy(config, model / "config.json")
    result = directory / "plan.json"
    end = subprocess.run([dms, "plan", recipe, f"model.path={model}", "--device", "h100", "--nproc", str(ranks),
                          "--json", result], capture_output=True, text=True)
    if end.returncode != 0:
        sys.exit(f"{recipe}: {end.stderr}")
    return json.loads(result.read_text())


def sequence_length(recipe):
    lines = [line.split(":")[1] for line in recipe.read_text().splitlines() if line.strip().startswith("sequence_length:")]
    return int(lines[0])


def row(name, tokens, p):
    def gib(key):
        return f"{p['per_rank_bytes'][key] / GIB:.1f}"
    hours = p["hours"]
    return (f"| {name} | {tokens} | {p['placement']}, {p['activation_checkpointing']} | {gib('weights')} | "
            f"{gib('activations')} | {gib('head')} | {gib('warm_start')} | "
            f"{gib('total') if p['fits'] else '- (' + gib('total') + ')'} | {p['step_seconds']:.1f} s | "
            f"{p['tokens'] / 1e6:.1f}M | {hours:.2g} | {p['largest_sequence_length']} |\n")


def page(dms):
    with tempfile.TemporaryDirectory(prefix="dms-plans-") as name:
        directory = pathlib.Path(name)
        sections, any_plan = "", None
        for ranks in (8, 1):
            for title, folder in (("Our recipes", ROOT / "recipes"), ("The official schedule", ROOT / "recipes" / "official")):
                sections += f"\n## {title} on {ranks} H100\n\n" + COLUMNS
                for recipe in sorted(folder.glob("*.yaml")):
                    config = ROOT / "tests" / "model" / "configs" / f"{recipe.stem}.json"
                    if recipe.stem == "smollm2-135m":  # for a laptop
                        continue
                    any_plan = plan(dms, recipe, config, ranks, directory)
                    link = f"[{recipe.stem}]({recipe.relative_to(PAGE.parent)})"
                    sections += row(link, sequence_length(recipe), any_plan)
        device = any_plan["device"]
        return HEAD.format(source=device["source"], efficiency=device["efficiency"],
                           process=any_plan["process_bytes"] / GIB) + sections


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dms", default="build/dms")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = page(str(pathlib.Path(arguments.dms).resolve()))
    if not arguments.check:
        PAGE.write_text(text)
        return
    difference = list(difflib.unified_diff(PAGE.read_text().splitlines(), text.splitlines(), str(PAGE), "now",
                                           lineterm=""))
    if difference:
        print("\n".join(difference))
        sys.exit("recipes/plans.md is not up to date: run tools/plan_tables.py")


if __name__ == "__main__":
    main()
