// Which far keys the sparse path of delayed-eviction attention still has to visit.
//
// The far part of a sequence is a causal square: row i stands for query i + window + 1 and sees keys 0..i, each with
// its bias.  Gone keys (model/eviction.h) need no work at all, so per KV head the *survivors* (kept and soft keys) are
// gathered.  Among gathered keys index-causality is lost; therefore the rows are cut into blocks: of the survivors
// before its first row a block sees all (an unmasked rectangle), the rest of its keys are local to it (a small masked
// square).  Everything here is a pure function of the set of gone keys, never of time or of the machine.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace dms {

class Survivors {
 public:
  // gone_GT: bool [G, T] on the CPU, of one sequence with T > window + 1.
  Survivors(const at::Tensor& gone_GT, int64_t window, int64_t block_rows);

  int64_t window() const { return window_; }
  int64_t num_heads() const { return static_cast<int64_t>(heads_.size()); }
  int64_t num_rows() const { return num_rows_; }  // T - window - 1
  int64_t num_blocks() const { return (num_rows_ + block_rows_ - 1) / block_rows_; }
  int64_t block_begin(int64_t block) const { return block * block_rows_; }
  int64_t block_end(int64_t block) const { return std::min(num_rows_, (block + 1) * block_rows_); }

  // Ascending key positions, int64 on the CPU.
  const at::Tensor& keys(int64_t head) const { return heads_[static_cast<size_t>(head)].keys; }
  int64_t num_keys(int64_t head) const { return keys(head).size(0); }
  // How many of them precede the block's first row.
  int64_t num_before(int64_t head, int64_t block) const {
    return heads_[static_cast<size_t>(head)].num_before[static_cast<size_t>(block)];
  }

  // (query, key) pairs that each path computes, summed over KV heads.
  int64_t sparse_pairs() const;
  int64_t dense_pairs() const;

 private:
  struct Head {
    at::Tensor keys;
    std::vector<int64_t> num_before;  // per block
  };
  int64_t window_, block_rows_, num_rows_;
  std::vector<Head> heads_;
};

// bool, same shape and device: keys that no far query sees.
at::Tensor gone_keys(const at::Tensor& bias);

// Whether the sparse path has fewer pairs to compute than two-part attention over all keys.  A pair costs about the
// same on both: on the CPU at d = 64, 0.95 of the dense one at T = 8192.
bool sparse_is_cheaper(const Survivors& survivors);

}  // namespace dms
