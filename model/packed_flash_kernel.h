// Delayed-eviction attention from a library's flash-attention kernels, for devices whose library has a causal one, a
// windowed one, and one that takes sequences of many lengths in one call ("varlen"), but no additive mask.  Its parts, merged
// by log-sum-exp:
//   dense   the near band, one windowed call, and the far causal square (model/far_square.h), one call
//   sparse  the near band; the squares of each block of rows and its own keys, biased, one batched causal call (and one for
//           a shorter last); the rectangles of the survivors before each block, biased, the group's query heads stacked as
//           rows, one packed call.  The number of calls does not depend on the number of blocks or heads.
// Backward gives each part the *merged* output and log-sum-exp, which makes its gradient exact: P = exp(S - lse_merged) and
// dS = P * (dP - rowsum(dOut * Out_merged)).
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

struct FlashGradients {
  at::Tensor dq_BHTd;
  at::Tensor dk_BGTd;
  at::Tensor dv_BGTd;
};

class PackedFlashKernel : public FlashKernel {
 public:
  FlashOutput dense(const AttentionTensors& in, int64_t window, double scale) const final;
  AttentionGradients dense_backward(const at::Tensor& dout_BHTd, const AttentionTensors& in, const FlashOutput& merged,
                                    int64_t window, double scale) const final;
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
  virtual FlashGradients causal_backward(const at::Tensor& dout_BHTd, const at::Tensor& q_BHTd,
                                         const at::Tensor& k_BGTd, const at::Tensor& v_BGTd, const FlashOutput& merged,
                                         double scale) const = 0;
  // Causal attention within a band: query q sees keys k with 0 <= q - k <= window.
  virtual FlashOutput banded(const at::Tensor& q_BHTd, const at::Tensor& k_BGTd, const at::Tensor& v_BGTd,
                             int64_t window, double scale) const = 0;
  virtual FlashGradients banded_backward(const at::Tensor& dout_BHTd, const at::Tensor& q_BHTd,
                                         const at::Tensor& k_BGTd, const at::Tensor& v_BGTd, const FlashOutput& merged,
                                         int64_t window, double scale) const = 0;
  virtual RowOutput rectangles(const Rectangles& packed, double scale) const = 0;
  virtual PackedGradients rectangles_backward(const at::Tensor& dout_Nd, const Rectangles& packed,
                                              const RowOutput& merged, double scale) const = 0;
};

}  // namespace dms
