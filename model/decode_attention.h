// Attention of one new token over the stored rows of one KV head, on the CPU: the inner loop of decoding.
//
// It reads every key and value once and does little arithmetic with them, so its limit is memory bandwidth; the group's
// query heads share each row that is read.  Rows may be stored in fewer bits than they are computed with.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace dms {

// Whether rows of this dtype can be attended to by decode_attention().
bool has_decode_attention(at::ScalarType stored);

// q [R, d] and out [R, d]: the group's query heads, contiguous float32.  keys, values: `num_rows` >= 1 contiguous rows, d % 8 == 0,
// of d elements of type `stored` (float32 or bfloat16).  out = softmax(scale q K^T) V in float32, rows in order, so that
// the result depends on nothing but the rows and their order.  Thread-safe.
void decode_attention(const float* q, int64_t group_size, int64_t head_dim, const void* keys, const void* values,
                      int64_t num_rows, at::ScalarType stored, float scale, float* out);

}  // namespace dms
