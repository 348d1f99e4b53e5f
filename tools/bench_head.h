// What the LM head and the distillation loss cost, beside the matrix products that they consist of.
#pragma once

#include <cstdint>
#include <string>

#include "tools/timing.h"
#include "trainer/distill.h"
#include "trainer/recipe.h"

namespace dms {

struct HeadBenchmark {
  std::string model;  // directory
  int64_t sequence_length = 2048, repeats = 5;
  DistillationOptions distillation;
  ComputeDtype dtype = ComputeDtype::automatic;
};

struct HeadFigures {
  Timing seconds;                 // KL of T positions and its gradient with respect to the student's hidden states
  double flops = 0.0;             // of the three products: both models' logits and the gradient, 2 T V D each
  double gemm_flops_per_s = 0.0;  // the best of the head's own products, in this process
  int64_t logit_bytes = 0;        // of both models' logits that exist at a time
  int64_t dense_logit_bytes = 0;  // of one model's [T, V] in float32
  std::string dtype;
  int threads = 0;
};

// On the CPU, on random hidden states; one call that is not timed, then `repeats` that are.  Throws UserError.
HeadFigures bench_head(const HeadBenchmark& benchmark);

}  // namespace dms
