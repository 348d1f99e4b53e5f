#include "trainer/last_use.h"

#include <c10/util/Exception.h>

#include <bit>
#include <unordered_map>

namespace dms {

std::vector<int32_t> distances_to_last_use(const std::vector<int32_t>& tokens, const DocumentOffsets& documents) {
  std::vector<int32_t> distances(tokens.size(), kNoTarget);
  for (size_t j = 0; j + 1 < documents.size(); ++j) {
    std::unordered_map<int32_t, int64_t> newest;  // place of each token
    for (int64_t t = documents[j]; t + 1 < documents[j + 1]; ++t) {
      newest[tokens[static_cast<size_t>(t)]] = t;
      const auto used = newest.find(tokens[static_cast<size_t>(t) + 1]);
      distances[static_cast<size_t>(t)] =
          used == newest.end() ? kNeverUsed : static_cast<int32_t>(t + 1 - used->second);
    }
  }
  return distances;
}

std::vector<LastUseBucket> kl_by_last_use(const std::vector<float>& kl, const std::vector<int32_t>& distances) {
  TORCH_CHECK(kl.size() == distances.size(), "one distance a position");
  std::vector<LastUseBucket> all{{0, 1, 0, 0.0}};
  for (size_t i = 0; i < kl.size(); ++i) {
    if (distances[i] == kNoTarget) continue;
    const auto bucket = static_cast<size_t>(std::bit_width(static_cast<uint32_t>(distances[i])));
    while (all.size() <= bucket) all.push_back({all.back().to, 2 * all.back().to, 0, 0.0});
    ++all[bucket].num_tokens;
    all[bucket].kl_mean += static_cast<double>(kl[i]);  // a sum so far
  }
  std::erase_if(all, [](const LastUseBucket& bucket) { return bucket.num_tokens == 0; });
  for (LastUseBucket& bucket : all) bucket.kl_mean /= static_cast<double>(bucket.num_tokens);
  return all;
}

}  // namespace dms
