#include "trainer/removal_cost.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace dms {

namespace {

constexpr int64_t kQueryBlock = 128;

// The last rotary pair [T, 2] of one head [T, d].
at::Tensor last_pair(const at::Tensor& values_Td) {
  const int64_t d = values_Td.size(1);
  return at::stack({values_Td.select(1, d / 2 - 1), values_Td.select(1, d - 1)}, 1).to(at::kFloat);
}

// Each row of pair_T2 rotated by the last pair's angle at its position.
at::Tensor rotated(const at::Tensor& pair_T2, const RopeTables& rope) {
  const int64_t last = rope.cos_Td.size(1) - 1, num_tokens = pair_T2.size(0);
  const at::Tensor cos_T = rope.cos_Td.slice(0, 0, num_tokens).select(1, last).to(at::kFloat);
  const at::Tensor sin_T = rope.sin_Td.slice(0, 0, num_tokens).select(1, last).to(at::kFloat);
  const at::Tensor first_T = pair_T2.select(1, 0), second_T = pair_T2.select(1, 1);
  return at::stack({first_T * cos_T - second_T * sin_T, second_T * cos_T + first_T * sin_T}, 1);
}

// Half of 1, Z and X applied to the queries' pair, each then rotated: three [T, 2].
std::vector<at::Tensor> rotated_parts(const at::Tensor& pair_T2, const RopeTables& rope) {
  const at::Tensor reflected_T2 = pair_T2 * at::tensor({1.0F, -1.0F}).to(pair_T2.device()),
                   swapped_T2 = at::flip(pair_T2, {1});
  std::vector<at::Tensor> parts;
  for (const at::Tensor& part_T2 : {pair_T2, reflected_T2, swapped_T2}) parts.push_back(rotated(part_T2 / 2, rope));
  return parts;
}

}  // namespace

at::Tensor removal_cost_H33(const Architecture& a, const LayerWeights& weights, const AttentionInputs& unrotated,
                            const AttentionInputs& inputs, const RopeTables& rope, const at::Tensor& lse_BHT,
                            const at::Tensor& x_TD) {
  const int64_t num_tokens = x_TD.size(0);
  const double scale = 1.0 / std::sqrt(static_cast<double>(a.head_dim));
  const at::Tensor norm_T = at::linalg_vector_norm(x_TD.to(at::kFloat), 2, {1});
  at::Tensor cost_H33 = at::zeros({a.num_heads, 3, 3}, at::kDouble);
  for (int64_t head = 0; head < a.num_heads; ++head) {
    const int64_t g = head / a.group_size();
    const at::Tensor q_Td = inputs.q_BHTd[0][head].to(at::kFloat), k_Td = inputs.k_BGTd[0][g].to(at::kFloat);
    const at::Tensor v_Td = inputs.v_BGTd[0][g].to(at::kFloat), lse_T = lse_BHT[0][head].to(at::kFloat);
    const at::Tensor output_Dd = weights.o_proj.narrow(1, head * a.head_dim, a.head_dim).to(at::kFloat);
    const at::Tensor metric_dd = at::matmul(output_Dd.t(), output_Dd);  // |W_o y|^2 = y^T metric y
    const std::vector<at::Tensor> query_parts = rotated_parts(last_pair(unrotated.q_BHTd[0][head]), rope);
    const at::Tensor key_pair_T2 = rotated(last_pair(unrotated.k_BGTd[0][g]), rope);
    for (int64_t begin = 0; begin < num_tokens; begin += kQueryBlock) {
      const int64_t end = std::min(begin + kQueryBlock, num_tokens);
      const auto visible = [&](const at::Tensor& keys) { return keys.slice(0, 0, end); };
      const at::Tensor future_nk = at::ones({end - begin, end}, k_Td.options().dtype(at::kBool)).triu(begin + 1);
      const at::Tensor p_nk = at::exp(at::matmul(q_Td.slice(0, begin, end), visible(k_Td).t()) * scale -
                                      lse_T.slice(0, begin, end).unsqueeze(1))
                                  .masked_fill_(future_nk, 0.0);
      std::vector<at::Tensor> moves;
      for (const at::Tensor& part_T2 : query_parts) {
        const at::Tensor change_nk = at::matmul(part_T2.slice(0, begin, end), visible(key_pair_T2).t()) * scale;
        const at::Tensor mean_n1 = at::sum(p_nk * change_nk, {1}, true);
        moves.push_back(at::matmul(p_nk * (change_nk - mean_n1), visible(v_Td)) /
                        norm_T.slice(0, begin, end).unsqueeze(1));
      }
      const at::Tensor moves_3nd = at::stack(moves);
      const at::Tensor weighed_3nd = at::matmul(moves_3nd, metric_dd);
      cost_H33[head] += at::matmul(moves_3nd.flatten(1), weighed_3nd.flatten(1).t()).to(at::kCPU, at::kDouble);
    }
  }
  return cost_H33 / static_cast<double>(num_tokens);
}

Removal removal_at(const at::Tensor& cost_33, double angle) {
  const double z[3] = {1.0, std::cos(2 * angle), std::sin(2 * angle)};
  const auto form = cost_33.accessor<double, 2>();
  Removal removal{angle, 0.0};
  for (int64_t i = 0; i < 3; ++i) {
    for (int64_t j = 0; j < 3; ++j) removal.cost += z[i] * form[i][j] * z[j];
  }
  return removal;
}

Removal cheapest_removal(const at::Tensor& cost_33) {
  // The form has at most two minima in [0, pi): a grid finds the lower one, and its own error is second order.
  constexpr int kAngles = 1800;
  Removal best = removal_at(cost_33, 0.0);
  for (int i = 1; i < kAngles; ++i) {
    const Removal candidate = removal_at(cost_33, std::numbers::pi * i / kAngles);
    if (candidate.cost < best.cost) best = candidate;
  }
  return best;
}

}  // namespace dms
