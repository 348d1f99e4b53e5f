// Eight floats at a time, for the loops of attention and decoding on the CPU: what the compiler would not vectorise by itself without reordering
// sums.  Sums are formed lane by lane in an order that is written here, so a result never depends on the machine's
// vector width, on threads or on what else is in a batch.
//
// Everything is to be inlined into functions marked DMS_VECTOR_CLONES: one copy per instruction set, chosen when the
// program starts.
#pragma once

#include <c10/core/ScalarType.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

// Named by level, which stands for features; an "arch=" of one model would match that maker's processors only.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define DMS_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DMS_VECTOR_CLONES
#endif
#define DMS_INLINE inline __attribute__((always_inline))

namespace dms {

constexpr int64_t kLanes = 8;
typedef float F32x8 __attribute__((vector_size(32)));
typedef int32_t I32x8 __attribute__((vector_size(32)));
typedef uint32_t U32x8 __attribute__((vector_size(32)));
typedef float F32x4 __attribute__((vector_size(16)));

// Elements as they are stored; what a quantised row must be multiplied with is not part of them.
struct StoredInt8 {
  int8_t value;
};
struct StoredFloat8E4M3 {  // sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinity
  uint8_t bits;
};
struct StoredBFloat16 {
  uint16_t bits;
};

DMS_INLINE F32x8 broadcast(float x) { return F32x8{x, x, x, x, x, x, x, x}; }

DMS_INLINE F32x8 load8(const float* from) {
  F32x8 x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
DMS_INLINE void store8(float* to, const F32x8& x) { std::memcpy(to, &x, sizeof x); }

DMS_INLINE F32x8 load8(const StoredBFloat16* from) {
  typedef uint16_t Short8 __attribute__((vector_size(16)));
  Short8 bits;
  std::memcpy(&bits, from, sizeof bits);
  return std::bit_cast<F32x8>(__builtin_convertvector(bits, U32x8) << 16U);
}

DMS_INLINE F32x8 load8(const StoredInt8* from) {
  typedef int8_t Byte8 __attribute__((vector_size(8)));
  Byte8 bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, I32x8), F32x8);
}

DMS_INLINE F32x8 load8(const StoredFloat8E4M3* from) {
  typedef uint8_t Byte8 __attribute__((vector_size(8)));
  Byte8 bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  const U32x8 bits = __builtin_convertvector(bytes, U32x8);
  const U32x8 magnitude = bits & 0x7FU, sign = (bits & 0x80U) << 24U;
  // A normal number's exponent moves from bias 7 to bias 127; a subnormal one is that many times 2^-9.
  const U32x8 normal = (magnitude << 20U) + (120U << 23U);
  const U32x8 subnormal =
      std::bit_cast<U32x8>(__builtin_convertvector(std::bit_cast<I32x8>(magnitude), F32x8) * 0x1p-9F);
  return std::bit_cast<F32x8>((magnitude < 8U ? subnormal : normal) | sign);
}

// The lanes of each of four vectors added up: ((0 + 2) + (1 + 3)) + ((4 + 6) + (5 + 7)).
DMS_INLINE F32x4 sum_lanes(const F32x8& a, const F32x8& b, const F32x8& c, const F32x8& d) {
  const F32x8 ab = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13) +
                   __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  const F32x8 cd = __builtin_shufflevector(c, d, 0, 8, 1, 9, 4, 12, 5, 13) +
                   __builtin_shufflevector(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
  const F32x8 abcd = __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) +
                     __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
  return __builtin_shufflevector(abcd, abcd, 0, 1, 2, 3) + __builtin_shufflevector(abcd, abcd, 4, 5, 6, 7);
}

// Begins to bring memory that will be read soon into the second-level cache.
DMS_INLINE void prefetch(const void* memory, int64_t num_bytes) {
  constexpr int64_t kCacheLine = 64;
  constexpr int kForReading = 0, kSecondLevel = 2;
  for (int64_t at = 0; at < num_bytes; at += kCacheLine) {
    __builtin_prefetch(static_cast<const std::byte*>(memory) + at, kForReading, kSecondLevel);
  }
}

// The products of R rows of `a` and N rows of `b`, N <= 4, summed over `length` (a multiple of 8) channels; rows lie
// `a_stride` and `b_stride` elements apart.  alongside(j): what is done beside channels j to j + 7, such as prefetching; to be
// inlined always.
template <int R, int N, class Stored, class Alongside>
DMS_INLINE void dot_products(const float* a, int64_t a_stride, const Stored* b, int64_t b_stride, int64_t length,
                             F32x4 (&products)[R], const Alongside& alongside) {
  F32x8 sum[R][4] = {};
  for (int64_t j = 0; j < length; j += kLanes) {
    alongside(j);
    F32x8 b_lanes[N];
    for (int n = 0; n < N; ++n) b_lanes[n] = load8(b + n * b_stride + j);
    for (int r = 0; r < R; ++r) {
      const F32x8 a_lanes = load8(a + r * a_stride + j);
      for (int n = 0; n < N; ++n) sum[r][n] += a_lanes * b_lanes[n];
    }
  }
  for (int r = 0; r < R; ++r) products[r] = sum_lanes(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
}
template <int R, int N, class Stored>
DMS_INLINE void dot_products(const float* a, int64_t a_stride, const Stored* b, int64_t b_stride, int64_t length,
                             F32x4 (&products)[R]) {
  dot_products<R, N>(a, a_stride, b, b_stride, length, products, [](int64_t) {});
}

// e^x for x <= 0, to two units in the last place; at and below -87 no smaller than e^-87.  The range reduction and the
// polynomial of Cephes' expf.
DMS_INLINE F32x8 exp_of_nonpositive(const F32x8& exponent) {
  const F32x8 x = exponent < -87.0F ? broadcast(-87.0F) : exponent;
  const F32x8 shifted = x * 1.44269504088896341F + 0x1.8p23F;  // rounds to the nearest integer
  const F32x8 n = shifted - 0x1.8p23F;
  const F32x8 r = (x - n * 0.693359375F) - n * -2.12194440e-4F;
  F32x8 p = broadcast(1.9875691500e-4F);
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r + 1.0F;
  const U32x8 power = (std::bit_cast<U32x8>(__builtin_convertvector(n, I32x8)) + 127U) << 23U;
  return p * std::bit_cast<F32x8>(power);
}

}  // namespace dms
