#!/usr/bin/env bash
# From a fresh clone to a trained evictor: installs what is missing, builds, retrofits SmolLM2-135M on real text,
# evaluates it on held-out text, exports it and writes a report.  Everything goes to quickstart/.
#   tools/quickstart.sh [key.path=value ...]     (changes to the recipe, e.g. trainer.steps=20)
# A stage whose inputs have not changed is skipped; an interrupted training run goes on where it stopped.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
overrides=("$@")
case "${1:-}" in -*) sed -n '2,5s/^# \{0,1\}//p' tools/quickstart.sh; [ "$1" = --help ] && exit 0 || exit 2 ;; esac

work=quickstart
recipe=recipes/smollm2-135m.yaml
sets=(perl git postgresql)
held_out=("$work"/held-out-{perl,git,postgresql}.h5)
num_stages=9
stage_number=0
start_seconds=$SECONDS
mkdir -p $work/logs $work/stamps
python=.venv/bin/python3

fingerprint() { cat "$@" | sha256sum | cut -d ' ' -f 1; }

# Shows on a terminal, on one line, what a command that logs much is doing; otherwise only passes the log on.
watch_log() {
  local line
  if [ ! -t 1 ]; then
    cat >"$1"
    return
  fi
  while IFS= read -r line; do
    printf '%s\n' "$line" >&3
    printf '\r\033[K      %.70s' "$line"
  done 3>"$1"
  printf '\r\033[K'
}

# Runs a stage unless its stamp says that it was done for the same inputs.  A stamp holds the inputs' fingerprint and the
# seconds that the stage took.
#   stage NAME shown|quiet TITLE FINGERPRINT OUTPUT COMMAND...
# shown: the command's output appears on the terminal too.  FINGERPRINT "-": the command itself skips what is done.
# A command that is a function must return at its first failure by itself: errexit is off in it.
stage() {
  local name=$1 mode=$2 title=$3 inputs=$4 output=$5 status=0
  shift 5
  stage_number=$((stage_number + 1))
  local log=$work/logs/$stage_number-$name.log stamp=$work/stamps/$name begin=$SECONDS
  printf '[%d/%d] %s' $stage_number $num_stages "$title"
  if [ "$inputs" != - ] && [ -e "$output" ] && [ "$(sed -n 1p "$stamp" 2>/dev/null)" = "$inputs" ]; then
    echo ": up to date"
    return
  fi
  echo
  if [ "$mode" = shown ]; then
    # tee must outlive an interrupt, which the program answers by saving.
    "$@" 2>&1 | tee -i "$log" || status=$?
  else
    "$@" 2>&1 | watch_log "$log" || status=$?
  fi
  if [ $status -ne 0 ]; then
    [ $status = 3 ] && { echo "Stopped. Run tools/quickstart.sh again to go on."; exit 3; }
    [ "$mode" = shown ] || tail -n 20 "$log" >&2
    echo "quickstart: stage '$name' failed with exit code $status; its output is in $log" >&2
    exit $status
  fi
  local seconds=$((SECONDS - begin))
  # A set-up or build that found little to do must not hide what the first one took.
  if [ "$inputs" != - ] || [ $seconds -ge "$(sed -n 2p "$stamp" 2>/dev/null || echo 0)" ]; then
    printf '%s\n%s\n' "$inputs" $seconds >"$stamp"
  fi
  echo "      $seconds s"
}

build() {
  cmake --preset release || return
  cmake --build --preset release --target dms --parallel "$(nproc)"
}

prepare() {
  local set
  build/dms prepare --force --tokenizer $work/model --out $work/train.h5 $work/text/train || return
  for set in "${sets[@]}"; do
    build/dms prepare --force --tokenizer $work/model --out "$work/held-out-$set.h5" "$work/text/held-out/$set" || return
  done
}

# Goes on with a run of the same inputs, starts over otherwise.
train() {
  local inputs=$1
  if [ "$(cat $work/run.inputs 2>/dev/null)" != "$inputs" ]; then
    rm -rf $work/run
    echo "$inputs" >$work/run.inputs
  fi
  build/dms train $recipe "${overrides[@]}" --run-dir $work/run --resume
}

evaluate() {
  build/dms eval --model $work/model --adapters $work/run --data "${held_out[@]}" --max-tokens 8192 --json $work/eval.json || return
  $python tools/quickstart_summary.py $work >/dev/null
}

stage setup shown "Installing what is missing" - . tools/setup.sh
# shellcheck source=tools/environment.sh
source tools/environment.sh
stage build quiet "Building build/dms" - . build
stage model quiet "Importing SmolLM2-135M-Instruct" - . $python tools/import_sample_model.py --out $work/model
stage text quiet "Collecting documentation text" - . $python tools/sample_text.py --out $work/text
data_inputs=$(fingerprint $work/text/*/*/*.txt $work/model/tokenizer.json)
stage prepare shown "Tokenizing" "$data_inputs" $work/held-out-postgresql.h5 prepare
run_inputs=$(fingerprint $recipe $work/model/{config.json,model.safetensors} <(echo "$data_inputs" "${overrides[@]}"))
stage train shown "Training the evictor" "$run_inputs" $work/run/checkpoints train "$run_inputs"
eval_inputs=$(fingerprint $work/run/checkpoints/*/adapters.safetensors <(echo "$run_inputs"))
stage eval shown "Evaluating on held-out text" "$eval_inputs" $work/eval.json evaluate
figures=$(fingerprint $work/eval.json <(echo "$eval_inputs"))
stage export quiet "Exporting for transformers" "$figures" $work/export-hf \
  build/dms export --force --run $work/run --to hf --eval $work/summary.json --out $work/export-hf
stage report quiet "Writing the report" "$figures" $work/report.html \
  build/dms report --run $work/run --summary $work/summary.json --name SmolLM2-135M-Instruct --out $work/report.html

# Once more, with the seconds of all stages.
$python tools/quickstart_summary.py $work
echo "
  $work/report.html    the report: open it in a browser
  $work/export-hf/     loads with transformers (its README.md says how)
  $work/run/           recipe, metrics, TensorBoard events, checkpoints
  $work/summary.json   all figures
  $work/logs/          what every stage printed
This call took $((SECONDS - start_seconds)) s."
