#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: builds against the PyTorch there, runs the tests that need a GPU and the benchmarks,
# and writes one JSON to bring home.
#   tools/gpu_check.sh [--build DIR] [--out FILE]     default: build-gpu, gpu_check.json
# TORCH_ROOT (.../site-packages/torch) names another PyTorch than that of .venv or python3.  Exit status: 0 if every test
# passed and every benchmark ran; the JSON is written either way.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=build-gpu out=gpu_check.json
while [ $# -gt 0 ]; do
  case "$1" in
    --build | --out)
      [ $# -ge 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
      declare "${1#--}=$2"
      shift 2
      ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0"; [ "$1" = --help ] && exit 0 || exit 2 ;;
  esac
done
command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null || { echo "gpu_check: nvidia-smi finds no GPU" >&2; exit 1; }

# shellcheck source=tools/environment.sh
source tools/environment.sh
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DDMS_CUDA=ON --log-level=NOTICE
cmake --build "$build" --target dms model_test

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
status=0
# Runs one step; what it says and how it ended go into the JSON.
step() {  # name, command...
  local name=$1
  shift
  echo "gpu_check: $name"
  local code=0
  "$@" >"$results/$name.log" 2>&1 || code=$?
  echo "$code" >"$results/$name.code"
  [ $code = 0 ] || { status=1; echo "gpu_check: $name ended with $code"; tail -n 20 "$results/$name.log"; }
}

step tests "$build/model_test" '--gtest_filter=Cuda/*:*OnAGpu*' "--gtest_output=json:$results/tests.json"
# Every kernel against the dense reference and, with two GPUs, NCCL between them.
step doctor "$build/dms" doctor --dir "$results" --json "$results/doctor.json"
step gemm "$build/dms" bench gemm --device cuda --repeat 20 --json "$results/gemm.json"
# Llama-3.2-1B's heads and Qwen3-8B's; the second at the length that its official retrofit trains on.
for shape in "32 8 64 8192" "32 8 64 32768" "32 8 128 8192" "32 8 128 32768"; do
  read -r heads kv_heads head_dim seq <<<"$shape"
  name=attention-$heads-$kv_heads-$head_dim-$seq
  step "$name" "$build/dms" bench attention --device cuda --heads "$heads" --kv-heads "$kv_heads" \
    --head-dim "$head_dim" --seq "$seq" --window 128 --repeat 10 --json "$results/$name.json"
done

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader >"$results/gpu.txt"
python3 - "$results" "$out" "$(git rev-parse HEAD 2>/dev/null || echo unknown)" <<'PYTHON'
import json
import os
import pathlib
import sys

results, out, commit = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
steps = {}
for code in sorted(results.glob("*.code")):
    figures = code.with_suffix(".json")
    log = code.with_suffix(".log").read_text()
    steps[code.stem] = {
        "exit_code": int(code.read_text()),
        "result": json.loads(figures.read_text()) if figures.exists() else None,
        "log_tail": log[-4000:],
    }
tests = steps["tests"]["result"]
gpus = (results / "gpu.txt").read_text().splitlines()


def found_by_doctor(check):
    """The smallest of all GPUs."""
    report = steps["doctor"]["result"] or {"checks": []}
    return min((c["value"] for c in report["checks"] if c["name"].startswith(check) and c.get("value")), default=None)


# What `dms plan --rates` takes in place of published figures.
rates = {
    "gemm_flops_per_s": (steps["gemm"]["result"] or {}).get("flops_per_s"),
    "memory_bytes": min(float(gpu.split(",")[2].split()[0]) for gpu in gpus) * 2**20,
    "all_gather_bytes_per_s": found_by_doctor("link between two GPUs"),
    "host_bytes_per_s": found_by_doctor("copies from the host"),
}
summary = {
    "commit": commit,
    "gpus": gpus,
    **{name: rate for name, rate in rates.items() if rate},
    "tests": {key: tests[key] for key in ("tests", "failures", "errors", "time")} if tests else None,
    "steps": steps,
}
partial = out.with_name(out.name + ".partial")
partial.write_text(json.dumps(summary, indent=2) + "\n")
os.replace(partial, out)
ran = summary["tests"]
print(f"gpu_check: {ran['tests']} tests, {ran['failures']} failed; {out}" if ran else f"gpu_check: no test ran; {out}")
PYTHON
# A build without a visible GPU instantiates no test: that is no success.
grep -q '"tests": [1-9]' "$results/tests.json" 2>/dev/null || status=1
exit $status
