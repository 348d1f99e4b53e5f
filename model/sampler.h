// From logits to the next token: temperature, top-k, top-p and min-p, with counter-based randomness, so that what a
// sequence draws depends on its seed and position alone and not on what else is in the batch.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace dms {

struct SamplingOptions {
  double temperature = 0.0;  // 0 = greedy
  int64_t top_k = 0;         // keep the k likeliest; 0 = all
  double top_p = 1.0;        // keep the fewest likeliest whose probabilities sum to at least this
  double min_p = 0.0;        // keep those at least this fraction of the likeliest one's probability
  uint64_t seed = 0;
};

// logits_V: one row, any floating dtype.  `sample` and `position` name the draw.  The filters apply in the order of
// `transformers`: temperature, top-k, top-p, min-p, each to what the one before has left.
int32_t sample_token(const at::Tensor& logits_V, const SamplingOptions& options, uint64_t sample, uint64_t position);

}  // namespace dms
