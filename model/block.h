// One decoder layer as functions of explicit weights, for one sequence.  The caller runs attention between the two
// halves, because teacher, student and compact-cache evaluation differ in nothing else.
//
//   n = RMSNorm(x); q, k, v = project(n)            attention_inputs
//   a = attention(q, k, v)                          (model/attention.h, model/compact_attention.h)
//   x = x + o_proj(a); x = x + MLP(RMSNorm(x))      finish_layer
//
// Weights are frozen: every function is differentiable in activations only.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "model/architecture.h"
#include "model/linear.h"
#include "model/rope.h"
#include "model/weights.h"

namespace dms {

// Statistics in float32, result in x's dtype, then times weight.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

// What a neuron adapter changes about the student's queries: what is borrowed leaves the attention score.  Undefined
// tensors change nothing.
struct QueryEdit {
  // Before RoPE, after the q norm: q = keep * q + cross * partner(q), the partner being the other channel of the rotary
  // pair.  Without `cross`, a mask.
  at::Tensor keep_Hd, cross_Hd;
  at::Tensor ratio_TH;      // what the q norm's result is multiplied by, since its mean square has changed
  bool after_rope = false;  // keep and cross once more after RoPE
};

struct AttentionInputs {
  at::Tensor q_BHTd, k_BGTd, v_BGTd;  // B = 1; views of [T, heads, d] memory, after RoPE
};

// normed_TD = rms_norm(x, input_norm).
AttentionInputs attention_inputs(const Architecture& architecture, const LayerWeights& weights,
                                 const at::Tensor& normed_TD, const RopeTables& rope, const QueryEdit& edit,
                                 Linear linear = library_linear);

// The MLP's two inner projections of some rows.
struct MlpInner {
  at::Tensor gate_nI, up_nI;
};

// What the backward pass of a layer's second half reads.
struct FinishState {
  at::Tensor y_TD;            // the residual stream between attention and MLP
  std::vector<MlpInner> mlp;  // of each piece of the rows; empty: computed again
};
enum class KeptOfMlp { inner_projections, nothing };

// The MLP takes its rows in nearly equal pieces of at most so many: what it holds of one on the way does not grow with the
// sequence, and on a CPU is memory that the piece before has already touched.
constexpr int64_t kMlpRows = 2048;
// Rows of the largest piece of so many.
int64_t largest_mlp_piece(int64_t num_rows);

// The stream between attention and MLP [T, D].  x_TD: the layer's input; attention_BHTd: [1, H, T, d].
at::Tensor add_attention(const Architecture& architecture, const LayerWeights& weights, const at::Tensor& x_TD,
                         const at::Tensor& attention_BHTd, Linear linear = library_linear);
// Arguments of add_attention.  Returns the layer's output [T, D].
at::Tensor finish_layer(const Architecture& architecture, const LayerWeights& weights, const at::Tensor& x_TD,
                        const at::Tensor& attention_BHTd, Linear linear = library_linear);
// The same, leaving in `state` what the backward pass reads.
at::Tensor finish_layer(const Architecture& architecture, const LayerWeights& weights, const at::Tensor& x_TD,
                        const at::Tensor& attention_BHTd, KeptOfMlp kept, FinishState& state);

struct FinishGradients {
  at::Tensor dx_TD, dattention_BHTd;
};
// Written out instead of recorded: it keeps three tensors where autograd keeps eight, and runs mostly in place.
FinishGradients finish_layer_backward(const Architecture& architecture, const LayerWeights& weights,
                                      const FinishState& state, const at::Tensor& dout_TD);

}  // namespace dms
