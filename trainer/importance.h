// Which keys matter: the label of the warm start.  For key k in head h, how much the attention output of its far
// queries would move if k were gone, relative to the residual stream,
//   e_qk = p_qk / max(1 - p_qk, 0.05) * ||(v_k - o_q) W_o^h|| / ||x_q||,
// p the attention weight, o_q the head's output, W_o^h the head's slice of the output projection.  Squared, averaged
// over the far queries (q - k > window), summed over the query heads of the KV group.
// Removing k renormalises the softmax: o moves by p / (1 - p) * (o_q - v_k).  A label without that denominator and
// without o_q (p ||v_k||) calls attention sinks worthless, because their values are small, and evicting them is ruin.
#pragma once

#include <ATen/ATen.h>

#include "model/block.h"
#include "model/eviction.h"

namespace dms {

// lse_BHT, out_BHTd: of plain causal attention on `inputs`.  x_TD: the layer's input.  Blocks over queries: O(T) memory.
// Returns float32 [G, T]; 0 for keys without a far query.
at::Tensor key_importance_GT(const Architecture& architecture, const LayerWeights& weights,
                             const AttentionInputs& inputs, const at::Tensor& out_BHTd, const at::Tensor& lse_BHT,
                             const at::Tensor& x_TD, int64_t window, const DocumentOffsets& documents);

}  // namespace dms
