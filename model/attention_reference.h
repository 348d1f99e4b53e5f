// Delayed-eviction attention straight from the definition: dense, float64, O(T^2) memory.  What every fast path is
// tested against; never used in a training step.
#pragma once

#include <ATen/ATen.h>

#include "model/eviction.h"

namespace dms {

// Arguments and result as delayed_eviction_attention, any floating dtype in, float64 out; autograd-differentiable.
at::Tensor dense_delayed_eviction_attention(const at::Tensor& q_BHTd, const at::Tensor& k_BGTd,
                                            const at::Tensor& v_BGTd, const at::Tensor& bias_BGT, int64_t window,
                                            const DocumentOffsets& documents);

// [T, T] bool, true where query (row) and key (column) share a document and the key is not in the future.
at::Tensor dense_causal_visibility(int64_t num_tokens, const DocumentOffsets& documents);

}  // namespace dms
