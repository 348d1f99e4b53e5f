#!/usr/bin/env bash
# Builds the libFuzzer targets with clang, AddressSanitizer and UndefinedBehaviorSanitizer, and runs each.
#   tests/fuzz/run.sh [RUNS [TARGET...]]      RUNS inputs each (default 2000); TARGET: config, recipe, ...
# New inputs that reach new code are kept in build-fuzz/corpus/TARGET; a finding is in build-fuzz/findings/.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tools/setup.sh --fuzz
# shellcheck source=tools/environment.sh
source tools/environment.sh
runs=${1:-2000}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(safetensors index config tokenizer token_file recipe chat)

cmake --preset fuzz --log-level=NOTICE >/dev/null
cmake --build --preset fuzz --parallel "$(nproc)" --target "${targets[@]/#/fuzz_}"
mkdir -p build-fuzz/findings
# The libraries behind the parsers are not instrumented and keep what they allocate once.
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
for target in "${targets[@]}"; do
  corpus=build-fuzz/corpus/$target
  mkdir -p "$corpus"
  seeds=(tests/fuzz/seeds/"$target")
  [ "$target" != config ] || seeds+=(tests/model/configs)
  [ "$target" != recipe ] || seeds+=(recipes)
  begin=$SECONDS
  if ! build-fuzz/fuzz_"$target" -runs="$runs" -max_len=8192 -timeout=20 -rss_limit_mb=4096 -seed=1 -verbosity=0 \
      -artifact_prefix=build-fuzz/findings/"$target"- "$corpus" "${seeds[@]}" >build-fuzz/"$target".log 2>&1; then
    tail -40 build-fuzz/"$target".log >&2
    echo "fuzz_$target: a finding; see build-fuzz/findings/" >&2
    exit 1
  fi
  echo "fuzz_$target: $runs inputs in $((SECONDS - begin)) s, no finding"
done
