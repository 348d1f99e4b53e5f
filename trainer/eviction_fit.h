// Fits one layer's keep/evict function to key importance: cost-sensitive logistic regression on the adapter's features.
//   label   importance > threshold
//   weight  |importance / threshold - 1|, capped: the cost of deciding wrongly.  A plain regression on log importance
//           gives rare, very costly keys (attention sinks) no weight and evicts them.
// Starts from a ridge regression on log importance.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace dms {

struct FitOptions {
  double weight_cap = 300.0;
  double ridge = 10.0;
  double weight_decay = 1e-5;
  int64_t iterations = 150;
  bool with_intercept = true;
};

struct KeepFunction {
  at::Tensor weight_GD;    // keep score = scale * (features weight^T) + intercept, in log-odds
  at::Tensor intercept_G;  // zeros without intercept
};

// What is fitted to: (token, decision) pairs, float32.
struct FitRows {
  at::Tensor features_ND;
  at::Tensor scale_NG;  // a factor on the features for each head; undefined: ones
  at::Tensor importance_NG;
  at::Tensor weight_N;  // how many rows each stands for (trainer/row_sample.h); undefined: one
};

KeepFunction fit_keep_function(const FitRows& rows, double threshold, const FitOptions& options);

// The value below which a share `fraction` of all entries lies (the k-th smallest).
double order_statistic(const at::Tensor& values, double fraction);
// The same when entry i counts weights[i] times.
double order_statistic(const at::Tensor& values, const at::Tensor& weights, double fraction);

}  // namespace dms
