// Moves a trained evictor along its trade-off between memory and quality without training: offsets added to the eviction
// logits, found on text, so that the KV cache of a sequence shrinks by the ratio asked for.  One offset for the whole model
// lets each head give up what it values least by the common measure.  An offset for each KV head fixes the heads' shares
// instead: all keep the same multiple of what they keep now.
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

// What each head may keep so that all together keep `share`: min(1, f now) with one factor f.
std::vector<double> proportional_shares(const std::vector<double>& now, double share);

enum class OffsetPer { model, kv_head };

struct ThresholdResult {
  double offset_change = 0.0;      // subtracted from the logits, the mean over heads; positive keeps more
  std::vector<double> keep_share;  // of keys beyond the window after each round
};
// Sets the adapter's alpha_offset, or the per-head bias that OffsetPer::kv_head needs.  Decisions change what later layers
// see, so offsets are found in rounds: evict with the last ones, take the quantiles of the logits seen, repeat.  `windows`
// all have one length.
ThresholdResult fit_threshold(WeightSource& source, Adapter& adapter, const EvictionOptions& eviction,
                              double keep_share, OffsetPer offset_per, const std::vector<Sample>& windows,
                              const std::function<void(int64_t, int64_t)>& progress);

}  // namespace dms
