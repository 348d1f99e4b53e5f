// The far part of delayed-eviction attention as a causal square for a library kernel that knows no bias: queries
// q[w+1:] against keys k[:T-w-1], row i sees columns 0..i.  The bias rides in extra head-dim columns: the query column
// holds a power of two c, the key column bias / (c * scale), the value column 0; the gradient of the bias is that column
// of dK.  Also the merge of partial results.
#pragma once

#include "model/flash_kernel.h"

namespace dms {

struct FarSquare {
  at::Tensor q, k, v;  // [B, heads, T - window - 1, d + columns]
};
FarSquare make_far_square(const AttentionTensors& in, int64_t window, double scale);

// In low precision a bias is carried by two columns, high and low parts, so that it keeps 16 significant bits.
int64_t num_bias_columns(at::ScalarType dtype);
at::Tensor append_zero_columns(const at::Tensor& x, int64_t columns);

// The gradient of the bias [...], in `dtype`, from dK [..., d + columns] of keys with bias columns.
at::Tensor bias_gradient(const at::Tensor& dk, int64_t head_dim, double scale, at::ScalarType dtype);

// Merges a part into `out` [..., d] and its log-sum-exp `lse` [...], in place: float32, or float64 for float64 inputs.
void merge(at::Tensor out, at::Tensor lse, const at::Tensor& part_out, const at::Tensor& part_lse);

}  // namespace dms
