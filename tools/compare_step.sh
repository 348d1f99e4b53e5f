#!/usr/bin/env bash
# One training step by dms and as written with transformers, in turn on the same machine; prints the ratios.
#   tools/compare_step.sh --model DIR --seq N --window N [--dtype float32|bfloat16] [--rounds N] [--steps N]
# Each round starts both programs afresh (--steps timed steps each, after one that is not); medians over the rounds.
set -euo pipefail

usage() { sed -n '2,4s/^# \{0,1\}//p' "$0"; }
model='' seq='' window='' dtype=float32 rounds=2 steps=2
while [ $# -gt 0 ]; do
  case "$1" in
    --help) usage; exit 0 ;;
    --model | --seq | --window | --dtype | --rounds | --steps)
      [ $# -ge 2 ] || { usage >&2; exit 2; }
      declare "${1#--}=$2"
      shift 2
      ;;
    *) usage >&2; exit 2 ;;
  esac
done
if [ -z "$model" ] || [ -z "$seq" ] || [ -z "$window" ]; then usage >&2; exit 2; fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}
export OMP_NUM_THREADS
figures=$(mktemp -d)
trap 'rm -rf "$figures"' EXIT
step=(--model "$model" --seq "$seq" --window "$window" --dtype "$dtype" --steps "$steps")
for round in $(seq "$rounds"); do
  echo "round $round/$rounds: dms, then transformers" >&2
  "$root/build/dms" bench train-step "${step[@]}" --json "$figures/dms-$round.json" >/dev/null
  "$root/.venv/bin/python3" "$root/tools/transformers_step.py" "${step[@]}" --json "$figures/transformers-$round.json"
done

python3 - "$figures" "$seq" <<'PYTHON'
import json
import pathlib
import statistics
import sys

folder, tokens = pathlib.Path(sys.argv[1]), int(sys.argv[2])
rows = {}
print(f"{'':14}{'tokens/s':>10}{'s/step':>9}{'min':>9}{'max':>9}{'peak MiB':>11}  dtype     threads")
for name in ("dms", "transformers"):
    rounds = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-*.json"))]
    seconds = statistics.median(figures["step_seconds"] for figures in rounds)
    memory = statistics.median(figures["peak_memory_bytes"] for figures in rounds)
    fastest = min(figures["step_seconds_min"] for figures in rounds)
    slowest = max(figures["step_seconds_max"] for figures in rounds)
    rows[name] = (tokens / seconds, memory)
    print(f"{name:14}{tokens / seconds:10.1f}{seconds:9.2f}{fastest:9.2f}{slowest:9.2f}{memory / 2**20:11.0f}"
          f"  {rounds[0]['dtype']:10}{rounds[0]['threads']}")  # fmt: skip
ours, theirs = rows["dms"], rows["transformers"]
print(f"dms: {ours[0] / theirs[0]:.2f} x the tokens/s, {ours[1] / theirs[1]:.2f} x the memory")
PYTHON
