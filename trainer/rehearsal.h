// One step's communication of N ranks, played through in one process: the shares of the batch, every gather of weights
// in the order of a real step, and the sum of the gradients, with all their sizes and none of the computation.  Finds
// out on a laptop what would otherwise be found out on N GPUs.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/recipe.h"

namespace dms {

struct Rehearsal {
  std::vector<int64_t> sequences_of_rank;
  int64_t weight_messages = 0, weight_bytes = 0;  // that each rank receives in a step
  int64_t gradient_messages = 0, gradient_bytes = 0;
};

// `recipe`: settled.  Reads the weights where trainer.placement is shard.  Throws as a run would.
Rehearsal rehearse_step(const Recipe& recipe, int64_t num_ranks);

}  // namespace dms
