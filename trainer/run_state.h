// A run's checkpoint: everything that continuing needs, in one sealed directory.
//   adapters.safetensors, dms_config.json   the evictor (checkpoints/adapter_file.h)
//   optimizer.safetensors                   Adam's moments
//   recipe.yaml                             the resolved recipe
//   trainer_state.json                      {"version": 1, "step": N}: the next step to run
//   manifest.json                           sizes and SHA-256 (checkpoints/run_dir.h)
// Data order and noise are functions of the step, so no generator state is needed.
#pragma once

#include <cstdint>
#include <string>

#include "model/adapter.h"
#include "trainer/optimizer.h"
#include "trainer/recipe.h"
#include "trainer/trained_adapter.h"

namespace dms {

struct CheckpointContents {
  AdapterFile adapter;
  NamedTensors optimizer;
  std::string recipe;
};
// A copy: training goes on while it is written.
CheckpointContents checkpoint_contents(const Adapter& adapter, const Optimizer& optimizer, const Recipe& recipe,
                                       const AdapterOrigin& origin);
// Writes RUN/checkpoints/step-NNNNNN and removes all but the newest `keep`.
void write_checkpoint(const std::string& run_dir, const CheckpointContents& contents, int64_t keep);
// What killed runs left in a run directory.  For the one run that goes on in it.
void remove_unfinished(const std::string& run_dir);

// Restores optimizer moments from a checkpoint directory (the adapter comes through load_trained_adapter) and returns
// the step to run next.  Throws UserError.
int64_t load_optimizer(const std::string& checkpoint_dir, Optimizer& optimizer);

// The resolved recipe of a run, checked against what the user asks to continue with: keys that change what a step
// computes must agree (UserError naming each otherwise).  `asked` may leave "auto" where the run has resolved it.
Recipe recipe_to_resume(const std::string& run_dir, Recipe asked);

}  // namespace dms
