// Which tokens make up training sample i: a pure function of (files, sequence length, seed, i), so that resuming
// needs one integer and the number of ranks does not matter.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/token_file.h"

namespace dms {

struct Sample {
  std::vector<int32_t> tokens;            // [T]
  std::vector<uint8_t> loss_mask;         // [T], 1 = counted
  std::vector<int64_t> document_offsets;  // 0 = first, ..., T; where documents begin inside this sample
};

class SampleOrder {
 public:
  // Documents of all files end to end, cut into windows of `sequence_length`, visited in an order that is a new
  // permutation each epoch; each epoch also shifts the cutting points.  Throws UserError when there are fewer tokens
  // than one window.
  SampleOrder(std::vector<std::shared_ptr<TokenFile>> files, int64_t sequence_length, uint64_t seed);
  ~SampleOrder();

  Sample sample(int64_t index) const;  // any index >= 0
  int64_t samples_per_epoch() const;

  // Evenly spaced, non-overlapping windows for evaluation: at most max_tokens / sequence_length of them.
  static std::vector<Sample> evaluation_windows(const TokenFile& file, int64_t sequence_length, int64_t max_tokens);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dms
