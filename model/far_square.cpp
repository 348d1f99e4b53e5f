#include "model/far_square.h"

#include <cmath>

namespace dms {

namespace {

// A power of two near 1/scale: exact in every dtype, and keeps bias/(c * scale) near the bias itself.
double query_column(double scale) { return std::exp2(std::floor(std::log2(1.0 / scale))); }

}  // namespace

int64_t num_bias_columns(at::ScalarType dtype) { return dtype == at::kFloat || dtype == at::kDouble ? 1 : 2; }

at::Tensor append_zero_columns(const at::Tensor& x, int64_t columns) {
  return at::constant_pad_nd(x, {0, columns}, 0.0);
}

FarSquare make_far_square(const AttentionTensors& in, int64_t window, double scale) {
  const int64_t size = in.q_BHTd.size(2) - window - 1;
  const at::ScalarType dtype = in.q_BHTd.scalar_type();
  const int64_t columns = num_bias_columns(dtype);
  const double column = query_column(scale);
  const at::Tensor key_column = (in.bias_BGT.slice(2, 0, size) / (column * scale)).unsqueeze(3);
  const at::Tensor high = key_column.to(dtype);
  std::vector<at::Tensor> key_parts{in.k_BGTd.slice(2, 0, size), high};
  if (columns == 2) key_parts.push_back((key_column - high.to(key_column.scalar_type())).to(dtype));
  return {at::constant_pad_nd(in.q_BHTd.slice(2, window + 1), {0, columns}, column), at::cat(key_parts, 3),
          append_zero_columns(in.v_BGTd.slice(2, 0, size), columns)};
}

at::Tensor bias_gradient(const at::Tensor& dk, int64_t head_dim, double scale, at::ScalarType dtype) {
  // dK[:, d] = scale * sum_q dS * c, and dbias = sum_q dS.
  return dk.select(-1, head_dim).to(dtype) / (query_column(scale) * scale);
}

void merge(at::Tensor out, at::Tensor lse, const at::Tensor& part_out, const at::Tensor& part_lse) {
  const at::Tensor merged_lse = at::logaddexp(lse, part_lse);
  out.copy_(out * at::exp(lse - merged_lse).unsqueeze(-1) + part_out * at::exp(part_lse - merged_lse).unsqueeze(-1));
  lse.copy_(merged_lse);
}

}  // namespace dms
