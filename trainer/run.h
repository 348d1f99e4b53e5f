// A whole training run: run directory, warm start, the loop, cadence, signals, resume.
#pragma once

#include <functional>
#include <string>

#include "trainer/ranks.h"
#include "trainer/recipe.h"

namespace dms {

struct RunOptions {
  std::string run_dir;
  bool resume = false;  // continue run_dir where its newest complete checkpoint stands
  std::function<bool()> stop_requested = [] { return false; };  // on any rank: all stop
};

// All ranks call together; the run directory is rank 0's.  Throws UserError before anything is written when the input
// is wrong, Interrupted after saving when `stop_requested`, RankLost, std::runtime_error when a loss or gradient is not
// finite.
void train(Recipe recipe, const RunOptions& options, RankGroup& ranks);

// Throws UserError when the global batch is too small for so many ranks.
void require_sequence_for_each_rank(const Recipe& recipe, int64_t num_ranks);

// Throws UserError when the ranks of a host, sharding their weights on its GPUs, are more than those: NCCL, which gathers
// the shards, takes one rank a GPU.  Under the other placements ranks may share a GPU.
void require_gpu_for_each_rank(const Recipe& recipe, int64_t ranks_of_host, int64_t num_gpus);

void settle_dtype(Recipe& recipe);  // "auto" on this machine's processor

// Settles what "auto" means on this machine, for that many ranks on it.  Throws UserError when a setting cannot be
// honoured.
void resolve_recipe(Recipe& recipe, const Architecture& architecture, int64_t num_ranks = 1);

}  // namespace dms
