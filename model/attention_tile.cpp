#include "model/attention_tile.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "model/vector8.h"

namespace dms {

namespace {

typedef double F64x8 __attribute__((vector_size(64)));
typedef int64_t I64x8 __attribute__((vector_size(64)));

template <class Real>
struct VectorOf;
template <>
struct VectorOf<float> {
  using Type = F32x8;
  using Index = I32x8;
};
template <>
struct VectorOf<double> {
  using Type = F64x8;
  using Index = I64x8;
};
static_assert(kTilePadding % kLanes == 0);

template <class Vector, class Real>
DMS_INLINE Vector load(const Real* from) {
  Vector x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}
template <class Real, class Vector>
DMS_INLINE void store(Real* to, const Vector& x) {
  std::memcpy(to, &x, sizeof(x));
}

// exp(x) for x <= 0; 0 where the result would not be normal, so that a key that is gone weighs nothing.
DMS_INLINE F32x8 exponential(const F32x8& x) { return x < -87.0F ? F32x8{} : exp_of_nonpositive(x); }
DMS_INLINE F64x8 exponential(const F64x8& x) {
  F64x8 y;
  for (int64_t i = 0; i < kLanes; ++i) y[i] = std::exp(x[i]);
  return y;
}

enum class Part { far, near, border };

// Which keys of a tile one row sees.
template <class Real>
class RowExtent {
 public:
  using Vector = typename VectorOf<Real>::Type;
  using Index = typename VectorOf<Real>::Index;

  DMS_INLINE RowExtent(const AttentionTile& tile, int64_t row)
      : visible_(std::clamp<int64_t>(tile.first_visible + row, 0, tile.width)),
        far_(std::clamp<int64_t>(tile.first_far + row, 0, visible_)) {
    for (int64_t i = 0; i < kLanes; ++i) lane_[i] = i;
  }
  int64_t visible() const { return visible_; }

  // x where the keys of the vector at j are visible, else `otherwise`; x where they are far, else 0.
  DMS_INLINE Vector where_visible(int64_t j, const Vector& x, const Vector& otherwise) const {
    return lane_ < (Index{} + as_lane(visible_ - j)) ? x : otherwise;
  }
  DMS_INLINE Vector where_far(int64_t j, const Vector& x) const {
    return lane_ < (Index{} + as_lane(far_ - j)) ? x : Vector{};
  }

  // Calls visit(j, part) for the first element j of every vector with a visible key; border: all sorts.  Returns the end.
  template <class Visit>
  DMS_INLINE int64_t for_vectors(const Visit& visit) const {
    int64_t j = 0;
    for (; j + kLanes <= far_; j += kLanes) visit(j, std::integral_constant<Part, Part::far>{});
    if (j < far_) {
      visit(j, std::integral_constant<Part, Part::border>{});
      j += kLanes;
    }
    for (; j + kLanes <= visible_; j += kLanes) visit(j, std::integral_constant<Part, Part::near>{});
    if (j < visible_) {
      visit(j, std::integral_constant<Part, Part::border>{});
      j += kLanes;
    }
    return j;
  }

  // The far keys' biases in the vector at j.
  template <Part part>
  DMS_INLINE Vector bias(const Real* of_tile, int64_t j) const {
    if constexpr (part == Part::near) return Vector{};
    const Vector x = load<Vector>(of_tile + j);
    return part == Part::far ? x : where_far(j, x);
  }

 private:
  DMS_INLINE static auto as_lane(int64_t x) { return static_cast<std::remove_cvref_t<decltype(Index{}[0])>>(x); }
  int64_t visible_, far_;
  Index lane_;
};

template <class Real>
DMS_INLINE void softmax_row(const RowExtent<Real>& extent, const AttentionTile& tile, const Real* bias, Real* score,
                            Real& row_max, Real& row_sum, Real* out, int64_t head_dim) {
  using Vector = typename VectorOf<Real>::Type;
  const Vector nothing = Vector{} - std::numeric_limits<Real>::infinity();
  Vector most = Vector{} + row_max;
  const int64_t end = extent.for_vectors([&](int64_t j, auto part) __attribute__((always_inline)) {
    Vector x = load<Vector>(score + j) + extent.template bias<part()>(bias, j);
    if (part() == Part::border) x = extent.where_visible(j, x, nothing);
    if (part() != Part::near) store(score + j, x);
    most = x > most ? x : most;
  });
  Real largest = row_max;
  for (int64_t i = 0; i < kLanes; ++i) largest = std::max<Real>(largest, most[i]);
  Vector total{};
  for (int64_t j = 0; j < end; j += kLanes) {
    const Vector x = exponential(load<Vector>(score + j) - largest);
    store(score + j, x);
    total += x;
  }
  std::fill(score + end, score + tile.padded_width(), Real(0));
  Real sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += total[i];
  const Real correction = std::exp(row_max - largest);
  row_sum = row_sum * correction + sum;
  row_max = largest;
  if (correction == Real(1)) return;
  for (int64_t j = 0; j < head_dim; ++j) out[j] *= correction;
}

template <class Real>
DMS_INLINE void gradient_row(const RowExtent<Real>& extent, const AttentionTile& tile, const Real* bias, Real logsumexp,
                             Real delta, Real* score, Real* dprobability, Real* dbias) {
  using Vector = typename VectorOf<Real>::Type;
  const int64_t end = extent.for_vectors([&](int64_t j, auto part) __attribute__((always_inline)) {
    Vector p = exponential(load<Vector>(score + j) + (extent.template bias<part()>(bias, j) - logsumexp));
    if (part() == Part::border) p = extent.where_visible(j, p, Vector{});
    Vector ds = p * (load<Vector>(dprobability + j) - delta);
    if (part() == Part::border) ds = extent.where_visible(j, ds, Vector{});  // the padding may hold anything
    store(score + j, p);
    store(dprobability + j, ds);
    if (part() != Part::near) {
      store(dbias + j, load<Vector>(dbias + j) + (part() == Part::far ? ds : extent.where_far(j, ds)));
    }
  });
  std::fill(score + end, score + tile.padded_width(), Real(0));
  std::fill(dprobability + end, dprobability + tile.padded_width(), Real(0));
}

template <class Real>
DMS_INLINE void softmax_rows(const AttentionTile& tile, const Real* bias, Real* score, Real* row_max, Real* row_sum,
                             Real* out, int64_t head_dim) {
  for (int64_t h = 0, r = 0; h < tile.heads; ++h) {
    for (int64_t i = 0; i < tile.rows; ++i, ++r) {
      const RowExtent<Real> extent(tile, i);
      if (extent.visible() == 0) {
        std::fill_n(score + r * tile.stride, tile.padded_width(), Real(0));
      } else {
        softmax_row(extent, tile, bias, score + r * tile.stride, row_max[r], row_sum[r], out + r * head_dim, head_dim);
      }
    }
  }
}

template <class Real>
DMS_INLINE void gradient_rows(const AttentionTile& tile, const Real* bias, const Real* logsumexp, const Real* delta,
                              Real* score, Real* dprobability, Real* dbias) {
  for (int64_t h = 0, r = 0; h < tile.heads; ++h) {
    for (int64_t i = 0; i < tile.rows; ++i, ++r) {
      gradient_row(RowExtent<Real>(tile, i), tile, bias, logsumexp[r], delta[r], score + r * tile.stride,
                   dprobability + r * tile.stride, dbias);
    }
  }
}

DMS_VECTOR_CLONES void softmax_float(const AttentionTile& tile, const float* bias, float* score, float* row_max,
                                     float* row_sum, float* out, int64_t head_dim) {
  softmax_rows(tile, bias, score, row_max, row_sum, out, head_dim);
}
DMS_VECTOR_CLONES void gradient_float(const AttentionTile& tile, const float* bias, const float* logsumexp,
                                      const float* delta, float* score, float* dprobability, float* dbias) {
  gradient_rows(tile, bias, logsumexp, delta, score, dprobability, dbias);
}

}  // namespace

template <>
void softmax_tile(const AttentionTile& tile, const float* bias, float* score, float* row_max, float* row_sum,
                  float* out, int64_t head_dim) {
  softmax_float(tile, bias, score, row_max, row_sum, out, head_dim);
}
template <>
void softmax_tile(const AttentionTile& tile, const double* bias, double* score, double* row_max, double* row_sum,
                  double* out, int64_t head_dim) {
  softmax_rows(tile, bias, score, row_max, row_sum, out, head_dim);
}

template <>
void gradient_tile(const AttentionTile& tile, const float* bias, const float* logsumexp, const float* delta,
                   float* score, float* dprobability, float* dbias) {
  gradient_float(tile, bias, logsumexp, delta, score, dprobability, dbias);
}
template <>
void gradient_tile(const AttentionTile& tile, const double* bias, const double* logsumexp, const double* delta,
                   double* score, double* dprobability, double* dbias) {
  gradient_rows(tile, bias, logsumexp, delta, score, dprobability, dbias);
}

}  // namespace dms
