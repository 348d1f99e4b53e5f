// A whole training run: run directory, warm start, the loop, cadence, signals, resume.
#pragma once

#include <functional>
#include <string>

#include "trainer/recipe.h"

namespace dms {

struct RunOptions {
  std::string run_dir;
  bool resume = false;  // continue run_dir where its newest complete checkpoint stands
  std::function<bool()> stop_requested = [] { return false; };
};

// Throws UserError before anything is written when the input is wrong, Interrupted after saving when
// `stop_requested`, std::runtime_error when a loss or gradient is not finite.
void train(Recipe recipe, const RunOptions& options);

// Settles what "auto" means on this machine.  Throws UserError when a setting cannot be honoured.
void resolve_recipe(Recipe& recipe, const Architecture& architecture);

}  // namespace dms
