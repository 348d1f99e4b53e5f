// Which calibration rows a layer's fit holds when there are more than it may: those that cost most when they are decided
// wrongly, and of the rest a sample, each with the weight that makes sums over what is held estimates of sums over all.
#pragma once

#include <ATen/ATen.h>

namespace dms {

// What deciding each row wrongly costs, in thresholds: the largest over heads of min(|importance / threshold - 1|, cap).
// importance_NG [N, G]; returns [N].
at::Tensor row_costs_N(const at::Tensor& importance_NG, double threshold, double cap);

struct RowSample {
  at::Tensor row_M;     // int64, ascending
  at::Tensor weight_M;  // float32: 1 / the probability with which the row was kept
};

// Keeps row n with probability min(1, share (1 + cost_n / mean_cost) / 2), so about `share` of all rows at most.
// noise_N: logistic noise, by which chance enters.
RowSample sample_rows(const at::Tensor& cost_N, double mean_cost, double share, const at::Tensor& noise_N);

}  // namespace dms
