// Moves a trained evictor along its trade-off between memory and quality without training: one offset added to every
// eviction logit, found on text, so that the KV cache of a sequence shrinks by the ratio asked for.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "data/sample_order.h"
#include "model/adapter.h"
#include "model/weights.h"

namespace dms {

// The share of keys beyond the window that may stay for a cache of `num_tokens` to shrink `ratio` times; at most 0 when
// the window alone is larger than that.
double keep_share(double ratio, int64_t num_tokens, int64_t window);

struct ThresholdResult {
  double offset_change = 0.0;      // added to alpha_offset; positive keeps more
  std::vector<double> keep_share;  // of keys beyond the window after each round
};
// Sets the adapter's alpha_offset.  Decisions change what later layers see, so the offset is found in rounds: evict with
// the last one, take the quantile of the logits seen, repeat.  `windows` all have one length.
ThresholdResult fit_threshold(WeightSource& source, Adapter& adapter, const EvictionOptions& eviction,
                              double keep_share, const std::vector<Sample>& windows,
                              const std::function<void(int64_t, int64_t)>& progress);

}  // namespace dms
