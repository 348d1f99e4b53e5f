#include "model/linear.h"

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

// One tile of the result, R x N.
template <int R, int N, class Stored>
DMS_INLINE void multiply_tile(const FewRows& problem, const Stored* weights, int64_t row, int64_t n) {
  F32x4 products[R];
  dot_products<R, N>(problem.x + row * problem.length, problem.length, weights + n * problem.length, problem.length,
                     problem.length, products);
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
    if (count == 3) {
      multiply_tile<3, N>(problem, weights, row, n);
    } else if (count == 2) {
      multiply_tile<2, N>(problem, weights, row, n);
    } else {
      multiply_tile<1, N>(problem, weights, row, n);
    }
  }
}

DMS_VECTOR_CLONES void multiply_float32(const FewRows& problem, const float* weights, int64_t first, int64_t last) {
  int64_t n = first;
  for (; n + kTileWeights <= last; n += kTileWeights) multiply_rows<kTileWeights>(problem, weights, n);
  for (; n < last; ++n) multiply_rows<1>(problem, weights, n);
}

bool takes_few_rows(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return x.dim() == 2 && x.size(0) >= 1 && x.size(0) <= kFewRows && x.size(1) % kLanes == 0 && x.is_cpu() &&
         x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat && weight.is_contiguous() &&
         (!bias.defined() || (bias.scalar_type() == at::kFloat && bias.is_contiguous()));
}

}  // namespace

at::Tensor library_linear(const at::Tensor& x_nK, const at::Tensor& weight_NK, const at::Tensor& bias_N) {
  return at::linear(x_nK, weight_NK, bias_N);
}

at::Tensor few_rows_linear(const at::Tensor& x_nK, const at::Tensor& weight_NK, const at::Tensor& bias_N) {
  const at::NoGradGuard no_grad;
  if (!takes_few_rows(x_nK, weight_NK, bias_N)) return at::linear(x_nK, weight_NK, bias_N);
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

}  // namespace dms
