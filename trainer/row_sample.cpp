#include "trainer/row_sample.h"

namespace dms {

at::Tensor row_costs_N(const at::Tensor& importance_NG, double threshold, double cap) {
  return at::amax((importance_NG / threshold).sub_(1.0).abs_().clamp_max_(cap), {1});
}

RowSample sample_rows(const at::Tensor& cost_N, double mean_cost, double share, const at::Tensor& noise_N) {
  const at::Tensor probability_N = ((cost_N / mean_cost + 1.0) * (0.5 * share)).clamp_max_(1.0);
  // sigmoid(noise) is uniform.
  const at::Tensor row_M = at::nonzero(at::sigmoid(noise_N.to(cost_N.device())) < probability_N).squeeze(1);
  return {row_M, probability_N.index_select(0, row_M).reciprocal_()};
}

}  // namespace dms
