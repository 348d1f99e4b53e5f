// Counter-based noise: each value is a pure function of where it is used, so a run sees the same noise whatever the
// number of ranks, on recomputation, and after a resume.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace dms {

// Logistic noise (the difference of two Gumbel variables) for one layer of one sample: float32 [G, T] on the CPU.
// `sample` is the global sample index and `step` the optimizer step; both below 2^32.
at::Tensor logistic_noise_GT(uint64_t seed, int64_t step, int64_t sample, int64_t layer, int64_t num_kv_heads,
                             int64_t num_tokens);

}  // namespace dms
