#include "model/linear.h"

#include <ATen/core/grad_mode.h>
#include <algorithm>

#include "model/parallel_tasks.h"
#include "model/vector8.h"

namespace dms {

namespace {

constexpr int64_t kTileRows = 3;     // of x, in registers at once
constexpr int64_t kTileWeights = 4;  // rows of the weight
constexpr int64_t kTaskWeights = 32;

struct FewRows {
  const float* x;     // [num_rows, length]
  const float* bias;  // [num_weights] or null
  float* out;         // [num_rows, num_weights]
  int64_t num_rows, num_weights, length;
};

// Beside each step of 8 channels, as many elements of the N rows from `rows` on, in the order of memory.  Inlined always:
// a call that only prefetches has no effect in the compiler's eyes, and is removed.
template <int N, class Stored>
struct PrefetchRows {
  const Stored* rows;
  DMS_INLINE void operator()(int64_t j) const {
    prefetch(rows + N * j, N * kLanes * static_cast<int64_t>(sizeof(Stored)));
  }
};

// One tile of the result, R x N.  `next`: the N rows of weights that will be wanted next, to be prefetched, or null.
template <int R, int N, class Stored>
DMS_INLINE void multiply_tile(const FewRows& problem, const Stored* weights, const Stored* next, int64_t row,
                              int64_t n) {
  F32x4 products[R];
  const float* x = problem.x + row * problem.length;
  const Stored* these = weights + n * problem.length;
  if (next != nullptr) {
    dot_products<R, N>(x, problem.length, these, problem.length, problem.length, products,
                       PrefetchRows<N, Stored>{next});
  } else {
    dot_products<R, N>(x, problem.length, these, problem.length, problem.length, products);
  }
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < N; ++i) {
      problem.out[(row + r) * problem.num_weights + n + i] =
          problem.bias == nullptr ? products[r][i] : products[r][i] + problem.bias[n + i];
    }
  }
}

template <int N, class Stored>
DMS_INLINE void multiply_rows(const FewRows& problem, const Stored* weights, int64_t n) {
  const int64_t num_tiles = (problem.num_rows + kTileRows - 1) / kTileRows;
  for (int64_t tile = 0; tile < num_tiles; ++tile) {  // of nearly equal sizes
    const int64_t row = tile * problem.num_rows / num_tiles;
    const int64_t count = (tile + 1) * problem.num_rows / num_tiles - row;
    const bool prefetches = tile == 0 && n + 2 * N <= problem.num_weights;
    const Stored* next = prefetches ? weights + (n + N) * problem.length : nullptr;
    if (count == 3) {
      multiply_tile<3, N>(problem, weights, next, row, n);
    } else if (count == 2) {
      multiply_tile<2, N>(problem, weights, next, row, n);
    } else {
      multiply_tile<1, N>(problem, weights, next, row, n);
    }
  }
}

DMS_VECTOR_CLONES void multiply_float32(const FewRows& problem, const float* weights, int64_t first, int64_t last) {
  int64_t n = first;
  for (; n + kTileWeights <= last; n += kTileWeights) multiply_rows<kTileWeights>(problem, weights, n);
  for (; n < last; ++n) multiply_rows<1>(problem, weights, n);
}

// Rows of x that a task sums; their partial sums are then added in order.
constexpr int64_t kTaskSummands = 2048;

// sum[r] += the sum over N rows of x of weight[r][n] x[n], for R rows of weights.
template <int R, int N>
DMS_INLINE void add_weighted(const float* weight, int64_t weight_stride, const float* x, int64_t length, float* sum) {
  F32x8 factor[R][N];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) factor[r][n] = broadcast(weight[r * weight_stride + n]);
  }
  for (int64_t j = 0; j < length; j += kLanes) {
    F32x8 x_lanes[N];
    for (int n = 0; n < N; ++n) x_lanes[n] = load8(x + n * length + j);
    for (int r = 0; r < R; ++r) {
      F32x8 total = load8(sum + r * length + j);
      for (int n = 0; n < N; ++n) total += factor[r][n] * x_lanes[n];
      store8(sum + r * length + j, total);
    }
  }
}

template <int R>
DMS_INLINE void add_all_weighted(const float* weight, int64_t weight_stride, const float* x, int64_t num_summands,
                                 int64_t length, float* sum) {
  int64_t n = 0;
  for (; n + 4 <= num_summands; n += 4) add_weighted<R, 4>(weight + n, weight_stride, x + n * length, length, sum);
  for (; n < num_summands; ++n) add_weighted<R, 1>(weight + n, weight_stride, x + n * length, length, sum);
}

// sum [num_rows, length] += weight [num_rows, num_summands] x, rows of the weight `weight_stride` apart.
DMS_VECTOR_CLONES void weighted_sum_float32(const float* weight, int64_t weight_stride, int64_t num_rows,
                                            const float* x, int64_t num_summands, int64_t length, float* sum) {
  int64_t r = 0;
  for (; r + 3 <= num_rows; r += 3) {
    add_all_weighted<3>(weight + r * weight_stride, weight_stride, x, num_summands, length, sum + r * length);
  }
  for (; r < num_rows; ++r) {
    add_all_weighted<1>(weight + r * weight_stride, weight_stride, x, num_summands, length, sum + r * length);
  }
}

bool is_float32_on_cpu(const at::Tensor& x) { return x.is_cpu() && x.scalar_type() == at::kFloat; }

// Whether the kernels here take `few` [n, ...] beside `many` [N, K].
bool takes(const at::Tensor& few, const at::Tensor& many) {
  return few.dim() == 2 && few.size(0) >= 1 && few.size(0) <= kFewRows && is_float32_on_cpu(few) &&
         is_float32_on_cpu(many) && many.is_contiguous() && many.size(1) % kLanes == 0;
}

}  // namespace

at::Tensor library_linear(const at::Tensor& x_nK, const at::Tensor& weight_NK, const at::Tensor& bias_N) {
  return at::linear(x_nK, weight_NK, bias_N);
}

at::Tensor few_rows_linear(const at::Tensor& x_nK, const at::Tensor& weight_NK, const at::Tensor& bias_N) {
  const at::NoGradGuard no_grad;
  if (!takes(x_nK, weight_NK) || (bias_N.defined() && !(is_float32_on_cpu(bias_N) && bias_N.is_contiguous()))) {
    return at::linear(x_nK, weight_NK, bias_N);
  }
  const at::Tensor x = x_nK.contiguous();
  at::Tensor out_nN = at::empty({x.size(0), weight_NK.size(0)}, x.options());
  const FewRows problem{x.data_ptr<float>(),      bias_N.defined() ? bias_N.data_ptr<float>() : nullptr,
                        out_nN.data_ptr<float>(), x.size(0),
                        weight_NK.size(0),        x.size(1)};
  const float* weights = weight_NK.data_ptr<float>();
  run_tasks((problem.num_weights + kTaskWeights - 1) / kTaskWeights, [&](int64_t task) {
    const int64_t first = task * kTaskWeights;
    multiply_float32(problem, weights, first, std::min(first + kTaskWeights, problem.num_weights));
  });
  return out_nN;
}

at::Tensor few_rows_weighted_sum(const at::Tensor& weight_nN, const at::Tensor& x_NK) {
  const at::NoGradGuard no_grad;
  if (!takes(weight_nN, x_NK)) return at::matmul(weight_nN, x_NK);
  const at::Tensor weight = weight_nN.contiguous();
  const int64_t num_rows = weight.size(0), num_summands = weight.size(1), length = x_NK.size(1);
  const int64_t num_tasks = (num_summands + kTaskSummands - 1) / kTaskSummands;
  const at::Tensor parts = at::zeros({num_tasks, num_rows, length}, x_NK.options());
  const float *weights = weight.const_data_ptr<float>(), *x = x_NK.const_data_ptr<float>();
  float* sums = parts.mutable_data_ptr<float>();
  run_tasks(num_tasks, [&](int64_t task) {
    const int64_t first = task * kTaskSummands, count = std::min(kTaskSummands, num_summands - first);
    weighted_sum_float32(weights + first, num_summands, num_rows, x + first * length, count, length,
                         sums + task * num_rows * length);
  });
  const at::Tensor total = parts.select(0, 0);
  for (int64_t task = 1; task < num_tasks; ++task) total.add_(parts.select(0, task));
  return total;
}

}  // namespace dms
