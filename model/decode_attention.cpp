#include "model/decode_attention.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <vector>

// The loops below are written so that the compiler vectorises them without reordering a sum; one copy per instruction
// set, chosen when the program starts.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define DMS_VECTOR_CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define DMS_VECTOR_CLONES
#endif

namespace dms {

namespace {

constexpr int64_t kLanes = 8;

inline float load(float x) { return x; }
inline float load(uint16_t bfloat16_bits) { return std::bit_cast<float>(static_cast<uint32_t>(bfloat16_bits) << 16U); }

// score[n] = scale * q . key[n]; d is a multiple of kLanes.
template <class Stored>
inline __attribute__((always_inline)) void score_rows(const float* q, const Stored* keys, int64_t num_rows,
                                                      int64_t head_dim, float scale, float* score) {
  for (int64_t n = 0; n < num_rows; ++n) {
    const Stored* key = keys + n * head_dim;
    float lane[kLanes] = {};
    for (int64_t j = 0; j < head_dim; j += kLanes) {
      for (int64_t i = 0; i < kLanes; ++i) lane[i] += q[j + i] * load(key[j + i]);
    }
    float sum = 0.0F;
    for (float part : lane) sum += part;
    score[n] = sum * scale;
  }
}

template <class Stored>
inline __attribute__((always_inline)) void add_values(const float* weight, const Stored* values, int64_t num_rows,
                                                      int64_t head_dim, float* out) {
  for (int64_t n = 0; n < num_rows; ++n) {
    const Stored* value = values + n * head_dim;
    const float w = weight[n];
    for (int64_t j = 0; j < head_dim; ++j) out[j] += w * load(value[j]);
  }
}

// Rows that stay in the first-level cache while every query head of the group reads them.
constexpr int64_t kRowBlock = 32;

template <class Stored>
inline __attribute__((always_inline)) void attend(const float* q, int64_t group_size, int64_t head_dim,
                                                  const Stored* keys, const Stored* values, int64_t num_rows,
                                                  float scale, float* score, float* out) {
  for (int64_t n = 0; n < num_rows; n += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, num_rows - n);
    for (int64_t r = 0; r < group_size; ++r) {
      score_rows(q + r * head_dim, keys + n * head_dim, rows, head_dim, scale, score + r * num_rows + n);
    }
  }
  for (int64_t r = 0; r < group_size; ++r) {
    float* s = score + r * num_rows;
    const float largest = *std::max_element(s, s + num_rows);
    double sum = 0.0;
    for (int64_t n = 0; n < num_rows; ++n) {
      s[n] = std::exp(s[n] - largest);
      sum += s[n];
    }
    const auto inverse = static_cast<float>(1.0 / sum);
    for (int64_t n = 0; n < num_rows; ++n) s[n] *= inverse;
  }
  std::fill(out, out + group_size * head_dim, 0.0F);
  for (int64_t n = 0; n < num_rows; n += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, num_rows - n);
    for (int64_t r = 0; r < group_size; ++r) {
      add_values(score + r * num_rows + n, values + n * head_dim, rows, head_dim, out + r * head_dim);
    }
  }
}

DMS_VECTOR_CLONES void attend_float32(const float* q, int64_t group_size, int64_t head_dim, const float* keys,
                                      const float* values, int64_t num_rows, float scale, float* score, float* out) {
  attend(q, group_size, head_dim, keys, values, num_rows, scale, score, out);
}

DMS_VECTOR_CLONES void attend_bfloat16(const float* q, int64_t group_size, int64_t head_dim, const uint16_t* keys,
                                       const uint16_t* values, int64_t num_rows, float scale, float* score,
                                       float* out) {
  attend(q, group_size, head_dim, keys, values, num_rows, scale, score, out);
}

}  // namespace

bool has_decode_attention(at::ScalarType stored) { return stored == at::kFloat || stored == at::kBFloat16; }

void decode_attention(const float* q, int64_t group_size, int64_t head_dim, const void* keys, const void* values,
                      int64_t num_rows, at::ScalarType stored, float scale, float* out) {
  TORCH_CHECK(head_dim % kLanes == 0 && num_rows >= 1 && has_decode_attention(stored), "decode_attention's contract");
  thread_local std::vector<float> score;
  score.resize(static_cast<size_t>(group_size * num_rows));
  if (stored == at::kFloat) {
    attend_float32(q, group_size, head_dim, static_cast<const float*>(keys), static_cast<const float*>(values),
                   num_rows, scale, score.data(), out);
  } else {
    attend_bfloat16(q, group_size, head_dim, static_cast<const uint16_t*>(keys), static_cast<const uint16_t*>(values),
                    num_rows, scale, score.data(), out);
  }
}

}  // namespace dms
