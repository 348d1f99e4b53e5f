#include "trainer/eviction_fit.h"

#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <cmath>

#include "model/linear.h"

namespace dms {

namespace {

// Below any importance that matters; keeps the logarithm finite.
constexpr double kSmallestImportance = 1e-12;

at::Tensor log_importance(const at::Tensor& importance) { return at::log(importance + kSmallestImportance); }

// Sums over the last dimension of x_GN, times factor_N, [G, 1], in an order that does not depend on threads.
at::Tensor row_sums_G1(const at::Tensor& x_GN, const at::Tensor& factor_N) {
  return few_rows_weighted_sum(x_GN, factor_N.unsqueeze(1).expand({-1, 8}).contiguous()).slice(1, 0, 1);
}
at::Tensor row_sums_G1(const at::Tensor& x_GN) { return row_sums_G1(x_GN, at::ones({x_GN.size(1)}, x_GN.options())); }

// The regression's rows, head by head.  A parameter is [G, F + 1]: weights of the features, then the intercept.
struct Rows {
  at::Tensor features_NF;
  at::Tensor scale_GN;  // undefined: ones.  Multiplies the features' part of a score, not the intercept
  at::Tensor label_GN, weight_GN;
  bool with_intercept;
};

// Gradient [G, F + 1] of the summed weighted logistic loss.
at::Tensor logistic_gradient(const Rows& rows, const at::Tensor& parameter) {
  const int64_t num_features = rows.features_NF.size(1);
  at::Tensor score_GN = few_rows_linear(parameter.slice(1, 0, num_features), rows.features_NF, {});
  if (rows.scale_GN.defined()) score_GN.mul_(rows.scale_GN);
  if (rows.with_intercept) score_GN.add_(parameter.slice(1, num_features));
  const at::Tensor residual_GN = score_GN.sigmoid_().sub_(rows.label_GN).mul_(rows.weight_GN);
  const at::Tensor of_intercept_G1 =
      rows.with_intercept ? row_sums_G1(residual_GN) : at::zeros_like(parameter.slice(1, num_features));
  const at::Tensor of_features_GF =
      few_rows_weighted_sum(rows.scale_GN.defined() ? residual_GN * rows.scale_GN : residual_GN, rows.features_NF);
  return at::cat({of_features_GF, of_intercept_G1}, 1);
}

// Ridge regression of target_GN on the features (and the intercept): a parameter [G, F + 1].  Rows are equations that
// were multiplied by factor_N on both sides.
at::Tensor ridge(const at::Tensor& features_NF, const at::Tensor& target_GN, const at::Tensor& factor_N,
                 bool with_intercept, double penalty) {
  const int64_t num_features = features_NF.size(1);
  const int64_t size = num_features + (with_intercept ? 1 : 0);
  at::Tensor gram = at::empty({size, size}, features_NF.options());
  at::Tensor right = at::empty({size, target_GN.size(0)}, features_NF.options());
  gram.slice(0, 0, num_features).slice(1, 0, num_features).copy_(at::matmul(features_NF.t(), features_NF));
  right.slice(0, 0, num_features).copy_(few_rows_weighted_sum(target_GN, features_NF).t());
  if (with_intercept) {
    const at::Tensor sums_F = few_rows_weighted_sum(factor_N.unsqueeze(0), features_NF)[0];
    gram.select(0, num_features).slice(0, 0, num_features).copy_(sums_F);
    gram.select(1, num_features).slice(0, 0, num_features).copy_(sums_F);
    gram[num_features][num_features].copy_(row_sums_G1(factor_N.unsqueeze(0), factor_N)[0][0]);
    right[num_features].copy_(row_sums_G1(target_GN, factor_N).squeeze(1));
  }
  gram.diagonal().add_(penalty);
  const at::Tensor solution = at::linalg_solve(gram, right).t();
  return with_intercept ? solution.contiguous() : at::constant_pad_nd(solution, {0, 1}, 0.0);
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

double order_statistic(const at::Tensor& values, const at::Tensor& weights, double fraction) {
  const auto [sorted, order] = at::sort(values.reshape({-1}));
  const at::Tensor sums = at::cumsum(weights.reshape({-1}).index_select(0, order), 0, at::kDouble);
  const at::Tensor wanted = sums[-1] * fraction;
  const int64_t rank = at::searchsorted(sums, wanted).item<int64_t>();
  return sorted[std::min(rank, sorted.numel() - 1)].item<double>();
}

KeepFunction fit_keep_function(const FitRows& fitted, double threshold, const FitOptions& options) {
  const at::NoGradGuard no_grad;
  const at::Tensor features_NF = fitted.features_ND.contiguous();
  const at::Tensor& scale_NG = fitted.scale_NG;
  const int64_t num_features = features_NF.size(1);
  const double log_threshold = std::log(threshold + kSmallestImportance);
  const at::Tensor log_ratio_GN = log_importance(fitted.importance_NG.t().contiguous()) - log_threshold;

  Rows rows{features_NF, {}, (log_ratio_GN > 0).to(at::kFloat), {}, options.with_intercept};
  rows.weight_GN = (at::exp(log_ratio_GN).clamp_max_(options.weight_cap) - 1.0).abs_();
  if (fitted.weight_N.defined()) rows.weight_GN.mul_(fitted.weight_N);
  at::Tensor mean_scale_G1;
  if (scale_NG.defined()) {
    // Relative to its mean, so that weights have the same size with and without it.
    mean_scale_G1 = at::mean(scale_NG, {0}).unsqueeze(1);
    rows.scale_GN = scale_NG.t().contiguous() / mean_scale_G1;
  }

  // On log importance relative to the threshold: a start whose sign is already the decision.
  at::Tensor parameter;
  double num_rows = static_cast<double>(features_NF.size(0));
  if (fitted.weight_N.defined()) {
    const at::Tensor factor_N = at::sqrt(fitted.weight_N);
    parameter = ridge(features_NF * factor_N.unsqueeze(1), log_ratio_GN * factor_N, factor_N, options.with_intercept,
                      options.ridge);
    num_rows = at::sum(fitted.weight_N, at::kDouble).item<double>();
  } else {
    const at::Tensor ones_N = at::ones({features_NF.size(0)}, features_NF.options());
    parameter = ridge(features_NF, log_ratio_GN, ones_N, options.with_intercept, options.ridge);
  }
  constexpr double kRate = 0.02;
  Adam adam(parameter);
  const double normaliser = 1.0 / (num_rows * static_cast<double>(log_ratio_GN.size(0)));
  for (int64_t i = 0; i < options.iterations; ++i) {
    const at::Tensor gradient =
        logistic_gradient(rows, parameter).mul_(normaliser).add_(parameter, 2.0 * options.weight_decay);
    adam.update(parameter, gradient, kRate * (1.0 - static_cast<double>(i) / static_cast<double>(options.iterations)));
  }
  KeepFunction keep{parameter.slice(1, 0, num_features).contiguous(), parameter.select(1, num_features).clone()};
  if (scale_NG.defined()) keep.weight_GD.div_(mean_scale_G1);
  return keep;
}

}  // namespace dms
