// The sparse path of delayed-eviction attention for devices whose library kernel takes sequences of many lengths in
// one call ("varlen"), but no additive mask:
//   near band       one windowed call
//   squares         of each block of rows its own keys, biased: one batched causal call (and one for a shorter last)
//   rectangles      the survivors before each block, biased, the group's query heads stacked as rows: one packed call
// The number of calls does not depend on the number of blocks or heads.
#pragma once

#include <vector>

#include "model/flash_kernel.h"

namespace dms {

// Unmasked attention of row groups of one head each: group i is rows [row_ends[i-1], row_ends[i]) against keys
// [key_ends[i-1], key_ends[i]); every group has at least one of each.
struct Rectangles {
  at::Tensor q_Nd, k_Md, v_Md;
  std::vector<int64_t> row_ends, key_ends;
};

class PackedFlashKernel : public FlashKernel {
 public:
  FlashOutput sparse(const AttentionTensors& in, const Survivors& survivors, double scale) const final;
  AttentionGradients sparse_backward(const at::Tensor& dout_BHTd, const AttentionTensors& in, const FlashOutput& merged,
                                     const Survivors& survivors, double scale) const final;

 protected:
  struct RowOutput {
    at::Tensor out_Nd, lse_N;
  };
  struct PackedGradients {
    at::Tensor dq_Nd, dk_Md, dv_Md;
  };
  virtual RowOutput rectangles(const Rectangles& packed, double scale) const = 0;
  virtual PackedGradients rectangles_backward(const at::Tensor& dout_Nd, const Rectangles& packed,
                                              const RowOutput& merged, double scale) const = 0;
};

}  // namespace dms
