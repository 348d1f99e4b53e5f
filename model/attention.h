// Delayed-eviction attention in O(T) memory, exact forward and backward, from library flash kernels.
//
// The causal triangle is cut in two.  Near band: q - k <= window, no bias.  Far part: queries q[w+1:] against keys
// k[:T-w-1] is again a causal square (row i sees columns 0..i), whose scores gain a bias per key and KV head.  The
// bias rides in one extra head-dimension column: the query column holds a power of two c, the key column bias/(c *
// scale), the value column 0.  The two results merge by log-sum-exp in float32.  Backward: each part's flash backward,
// given the merged output and log-sum-exp, is exact; the gradient of the bias is the extra column of dK.
// That is the dense path.  The sparse path leaves gone keys out (model/survivors.h), so that it gets cheaper as
// compression rises; it is exact too.  Nothing of size [T, T] exists in either.  Each document of each sample is a
// computation of its own.
#pragma once

#include <ATen/ATen.h>

#include "model/eviction.h"
#include "model/flash_kernel.h"

namespace dms {

// q_BHTd [B, H, T, d], k_BGTd, v_BGTd [B, G, T, d], bias_BGT [B, G, T] (values in (-inf, 0] or kGoneBias; read only
// beyond the window).  Returns [B, H, T, d].  Scores are scaled by d^-0.5.  Differentiable in all four.
// `automatic` takes, for each document of each sample, the path that has less to compute for its survivors.
at::Tensor delayed_eviction_attention(const at::Tensor& q_BHTd, const at::Tensor& k_BGTd, const at::Tensor& v_BGTd,
                                      const at::Tensor& bias_BGT, int64_t window, const DocumentOffsets& documents,
                                      AttentionPath path);

// Plain causal attention within documents: the teacher's.  Not recorded for autograd.
FlashOutput causal_attention(const at::Tensor& q_BHTd, const at::Tensor& k_BGTd, const at::Tensor& v_BGTd,
                             const DocumentOffsets& documents);

}  // namespace dms
