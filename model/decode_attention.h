// Attention of one new token of each of many sequences over the stored rows of their KV heads, on the CPU: the inner loop
// of decoding.
//
// It reads every key and value once and does little arithmetic with them, so its limit is memory bandwidth; the group's
// query heads share each row that is read, and quantised rows are widened in registers.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <vector>

#include "model/kv_page.h"

namespace dms {

// Whether rows of this dtype can be attended to by decode_attention(): float32, bfloat16, int8 and float8_e4m3fn.
bool has_decode_attention(c10::ScalarType stored);

// One KV head of one sequence: its first `num_rows` rows (at least 1), in pages of kCpuPageRows.
struct DecodeHead {
  const float* q;      // [R, d], the group's query heads; d is a multiple of 8
  const KvRow* pages;  // of rows stored as `stored`
  int64_t num_rows = 0;
  float* out;  // [R, d]
};

// out = softmax(scale q K^T) V of every head, in float32.  Rows are taken in order, in parts of a fixed length that
// threads share: the result depends on nothing but a head's own rows and their order.
void decode_attention(const std::vector<DecodeHead>& heads, int64_t group_size, int64_t head_dim,
                      c10::ScalarType stored, float scale);

}  // namespace dms
