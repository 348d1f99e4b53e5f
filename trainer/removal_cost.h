// What it costs to take a direction of one rotary pair out of a head's queries: how much the head's attention output
// moves, after the output projection and relative to the residual stream, mean square over queries, to first order
//   d o_q = sum_k p_qk (ds_qk - sum_j p_qj ds_qj) v_k,    ds_qk = d^-1/2 (P q)^T R(q - k) k,   P = u u^T.
// With u = (cos a, sin a) in the plane of the pair (i, i + d/2), P = (1 + cos 2a Z + sin 2a X) / 2 with the reflections
// Z = diag(1, -1), X = [[0, 1], [1, 0]], so the cost of every angle is a quadratic form of z = (1, cos 2a, sin 2a).
#pragma once

#include <ATen/ATen.h>

#include "model/block.h"

namespace dms {

// The quadratic forms of the last pair (d/2-1, d-1) of all heads, float64 [H, 3, 3].  `unrotated`, `inputs`: before and
// after RoPE; lse_BHT: of plain causal attention on `inputs`; x_TD: the layer's input.
at::Tensor removal_cost_H33(const Architecture& architecture, const LayerWeights& weights,
                            const AttentionInputs& unrotated, const AttentionInputs& inputs, const RopeTables& rope,
                            const at::Tensor& lse_BHT, const at::Tensor& x_TD);

struct Removal {
  double angle = 0.0;  // of u, in [0, pi)
  double cost = 0.0;
};
Removal removal_at(const at::Tensor& cost_33, double angle);
Removal cheapest_removal(const at::Tensor& cost_33);

}  // namespace dms
