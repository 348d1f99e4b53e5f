#!/usr/bin/env bash
# Installs what is missing, builds everything and runs the tests.
#   tools/test.sh [--fast] [-DNAME=VALUE ...]
#     --fast    only the tests labelled fast; needs neither the Python reference libraries nor the sample model
#     -D...     passed to CMake, e.g. -DDMS_WERROR=ON
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
fast=no
definitions=()
for argument in "$@"; do
  case "$argument" in
    --fast) fast=yes ;;
    -D*) definitions+=("$argument") ;;
    *) sed -n '2,5s/^# \{0,1\}//p' tools/test.sh; [ "$argument" = --help ] && exit 0 || exit 2 ;;
  esac
done

if [ $fast = yes ]; then tools/setup.sh; else tools/setup.sh --reference; fi
# shellcheck source=tools/environment.sh
source tools/environment.sh

begin=$SECONDS
cmake --preset release --log-level=NOTICE "${definitions[@]}" >/dev/null
cmake --build --preset release --parallel "$(nproc)"
echo "built in $((SECONDS - begin)) s"

selection=()
if [ $fast = yes ]; then
  selection=(-L fast)
else
  .venv/bin/python3 tools/import_sample_model.py --out quickstart/model
  .venv/bin/python3 tools/sample_text.py --out quickstart/text
fi
# Tests run side by side, one thread each; what needs several threads asks for them.  (Not exported: nproc heeds it.)
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ctest --test-dir build --output-on-failure --no-tests=error --parallel "$(nproc)" "${selection[@]}"
