// How long ago a text last used the token that comes next: a model that has forgotten the middle of a text pays where that
// distance is large, and nowhere else as clearly.
//
// For the prediction at position t, whose target is token t + 1, the distance is t + 1 - s with s <= t the newest place of
// the same document where the target stands.
#pragma once

#include <cstdint>
#include <vector>

#include "model/eviction.h"

namespace dms {

inline constexpr int32_t kNeverUsed = 0;  // the target is new to its document
inline constexpr int32_t kNoTarget = -1;  // the last position of a document

std::vector<int32_t> distances_to_last_use(const std::vector<int32_t>& tokens, const DocumentOffsets& documents);

// Mean KL over the predictions whose distance d has from <= d < to.
struct LastUseBucket {
  int64_t from = 0, to = 0, num_tokens = 0;
  double kl_mean = 0.0;
};
// By powers of two, empty buckets left out; kNeverUsed, if it occurs, comes first as {0, 1}.  `kl` and `distances` are
// of the same positions.
std::vector<LastUseBucket> kl_by_last_use(const std::vector<float>& kl, const std::vector<int32_t>& distances);

}  // namespace dms
