#include "model/survivors.h"

#include <algorithm>

#include "model/eviction.h"

namespace dms {

Survivors::Survivors(const at::Tensor& gone_GT, int64_t window, int64_t block_rows)
    : window_(window), block_rows_(block_rows), num_rows_(gone_GT.size(1) - window - 1) {
  TORCH_CHECK(num_rows_ > 0 && block_rows > 0, "no far part, or no block");
  for (int64_t g = 0; g < gone_GT.size(0); ++g) {
    Head head;
    head.keys = at::nonzero(gone_GT.select(0, g).slice(0, 0, num_rows_).logical_not()).select(1, 0).contiguous();
    const int64_t* keys = head.keys.const_data_ptr<int64_t>();
    const int64_t* end = keys + head.keys.size(0);
    for (int64_t block = 0; block < num_blocks(); ++block) {
      head.num_before.push_back(std::lower_bound(keys, end, block_begin(block)) - keys);
    }
    heads_.push_back(std::move(head));
  }
}

int64_t Survivors::sparse_pairs() const {
  int64_t pairs = 0;
  for (int64_t block = 0; block < num_blocks(); ++block) {
    const int64_t rows = block_end(block) - block_begin(block);
    int64_t keys = num_heads() * (rows + window_ + 1);
    for (int64_t g = 0; g < num_heads(); ++g) keys += num_before(g, block);
    pairs += rows * keys;
  }
  return pairs;
}

int64_t Survivors::dense_pairs() const {
  return num_heads() * (num_rows_ * (window_ + 1) + num_rows_ * (num_rows_ + 1) / 2);
}

at::Tensor gone_keys(const at::Tensor& bias) { return bias <= 0.5 * kGoneBias; }

bool sparse_is_cheaper(const Survivors& survivors) { return survivors.sparse_pairs() < survivors.dense_pairs(); }

}  // namespace dms
