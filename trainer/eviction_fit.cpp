#include "trainer/eviction_fit.h"

#include <algorithm>
#include <cmath>

namespace dms {

namespace {

// Below any importance that matters; keeps the logarithm finite.
constexpr double kSmallestImportance = 1e-12;

at::Tensor log_importance(const at::Tensor& importance) { return at::log(importance + kSmallestImportance); }

// Rows that pass through the cache together: the scores and the gradient then read the features from memory once.
constexpr int64_t kRowBlock = 4096;

// Gradient [F, G] of the summed weighted logistic loss at w [F, G].  scale_NG (undefined: ones) multiplies the scores,
// but not the part that comes from the last column when that is the intercept.
at::Tensor logistic_gradient(const at::Tensor& x_NF, const at::Tensor& scale_NG, bool with_intercept,
                             const at::Tensor& w_FG, const at::Tensor& label_NG, const at::Tensor& weight_NG) {
  // [G, F] products: BLAS is several times slower on the tall, narrow result of x^T residual.
  const at::Tensor w_GF = w_FG.t().contiguous();
  at::Tensor gradient_GF = at::zeros_like(w_GF);
  for (int64_t begin = 0; begin < x_NF.size(0); begin += kRowBlock) {
    const auto block = [&](const at::Tensor& rows) {
      return rows.slice(0, begin, std::min(begin + kRowBlock, rows.size(0)));
    };
    at::Tensor score = at::linear(block(x_NF), w_GF);
    if (scale_NG.defined()) {
      const at::Tensor unscaled_G = with_intercept ? w_GF.select(1, -1) : at::zeros({w_GF.size(0)}, w_GF.options());
      score.sub_(unscaled_G).mul_(block(scale_NG)).add_(unscaled_G);
    }
    const at::Tensor residual = at::sigmoid(score).sub_(block(label_NG)).mul_(block(weight_NG));
    const at::Tensor scaled = scale_NG.defined() ? residual * block(scale_NG) : residual;
    gradient_GF.add_(at::matmul(scaled.t(), block(x_NF)));
    if (scale_NG.defined() && with_intercept) gradient_GF.select(1, -1).add_(at::sum(residual - scaled, {0}));
  }
  return gradient_GF.t();
}

// Full-batch Adam on the convex objective, step size decaying to zero.
class Adam {
 public:
  explicit Adam(const at::Tensor& like) : mean_(at::zeros_like(like)), square_(at::zeros_like(like)) {}
  void update(at::Tensor& parameter, const at::Tensor& gradient, double rate) {
    ++count_;
    mean_.mul_(kBeta1).add_(gradient, 1.0 - kBeta1);
    square_.mul_(kBeta2).addcmul_(gradient, gradient, 1.0 - kBeta2);
    const double bias1 = 1.0 - std::pow(kBeta1, count_), bias2 = 1.0 - std::pow(kBeta2, count_);
    parameter.addcdiv_(mean_ / bias1, (square_ / bias2).sqrt_().add_(1e-8), -rate);
  }

 private:
  static constexpr double kBeta1 = 0.9, kBeta2 = 0.999;
  at::Tensor mean_, square_;
  int count_ = 0;
};

}  // namespace

double order_statistic(const at::Tensor& values, double fraction) {
  const at::Tensor flat = values.reshape({-1});
  const auto rank = static_cast<int64_t>(std::floor(static_cast<double>(flat.numel()) * fraction));
  return std::get<0>(at::kthvalue(flat, std::clamp<int64_t>(rank, 1, flat.numel()))).item<double>();
}

KeepFunction fit_keep_function(const at::Tensor& features_ND, const at::Tensor& scale_NG,
                               const at::Tensor& importance_NG, double threshold, const FitOptions& options) {
  const at::NoGradGuard no_grad;
  const int64_t num_rows = features_ND.size(0), num_heads = importance_NG.size(1);
  const at::Tensor x =
      options.with_intercept ? at::cat({features_ND, at::ones({num_rows, 1}, features_ND.options())}, 1) : features_ND;
  const double log_threshold = std::log(threshold + kSmallestImportance);
  const at::Tensor log_ratio_NG = log_importance(importance_NG) - log_threshold;
  const at::Tensor ratio_NG = at::exp(log_ratio_NG).clamp_max_(options.weight_cap);
  const at::Tensor label_NG = (log_ratio_NG > 0).to(at::kFloat);
  const at::Tensor weight_NG = (ratio_NG - 1.0).abs_();

  // Relative to its mean, so that weights have the same size with and without it.
  const at::Tensor mean_scale_G = scale_NG.defined() ? at::mean(scale_NG, {0}) : at::Tensor();
  const at::Tensor relative_NG = scale_NG.defined() ? scale_NG / mean_scale_G : at::Tensor();

  // Ridge on log importance relative to the threshold: a start whose sign is already the decision.
  at::Tensor gram = at::matmul(x.t(), x);
  gram.diagonal().add_(options.ridge);
  at::Tensor w = at::linalg_solve(gram, at::matmul(x.t(), log_ratio_NG));

  constexpr double kRate = 0.02;
  Adam adam(w);
  const double normaliser = 1.0 / static_cast<double>(num_rows * num_heads);
  for (int64_t i = 0; i < options.iterations; ++i) {
    const at::Tensor gradient = logistic_gradient(x, relative_NG, options.with_intercept, w, label_NG, weight_NG)
                                    .mul(normaliser)
                                    .add_(w, 2.0 * options.weight_decay);
    adam.update(w, gradient, kRate * (1.0 - static_cast<double>(i) / static_cast<double>(options.iterations)));
  }
  KeepFunction keep;
  keep.weight_GD = w.slice(0, 0, features_ND.size(1)).t().contiguous();
  if (scale_NG.defined()) keep.weight_GD.div_(mean_scale_G.unsqueeze(1));
  keep.intercept_G =
      options.with_intercept ? w.select(0, features_ND.size(1)).clone() : at::zeros({num_heads}, w.options());
  return keep;
}

}  // namespace dms
