// How fast one training step is, end to end: forward of teacher and student, loss, backward, clipping, Adam, on
// synthetic tokens.  tools/transformers_step.py times the same step as written with transformers.
#pragma once

#include <cstdint>
#include <string>

#include "trainer/recipe.h"

namespace dms {

struct TrainStepBenchmark {
  std::string model;     // directory
  std::string adapters;  // directory; empty: a linear adapter at its initial value
  int64_t sequence_length = 0, window = 0;
  int64_t num_steps = 3;  // timed
  int64_t num_warm_up_steps = 1;
  ComputeDtype dtype = ComputeDtype::automatic;
  ActivationCheckpointing checkpointing = ActivationCheckpointing::automatic;
};

struct TrainStepFigures {
  double tokens_per_s = 0.0;  // at the median
  double step_seconds = 0.0;  // median
  double step_seconds_min = 0.0, step_seconds_max = 0.0;
  int64_t peak_memory_bytes = 0;                // of the whole process, the mapped weights included
  double mfu = 0.0;                             // needed FLOPs over the step's time at gemm_flops_per_s
  double gemm_flops_per_s = 0.0;                // best of 2048^3 and the model's own shapes
  std::string dtype, activation_checkpointing;  // what "auto" came to
  int threads = 0;
};

// Throws UserError.
TrainStepFigures bench_train_step(const TrainStepBenchmark& benchmark);

}  // namespace dms
