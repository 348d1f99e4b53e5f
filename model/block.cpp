#include "model/block.h"

#include <ATen/core/grad_mode.h>

namespace dms {

namespace {

at::Tensor project_heads(const at::Tensor& normed_TD, const at::Tensor& weight, const at::Tensor& bias,
                         int64_t num_heads, int64_t head_dim, Linear linear) {
  return linear(normed_TD, weight, bias).view({normed_TD.size(0), num_heads, head_dim});
}

struct MlpInner {
  at::Tensor gate_TI, up_TI;
};

MlpInner mlp_inner(const Architecture& a, const LayerWeights& w, const at::Tensor& y_TD, Linear linear) {
  const at::Tensor normed_TD = rms_norm(y_TD, w.post_norm, a.rms_norm_eps);
  return {linear(normed_TD, w.gate_proj, {}), linear(normed_TD, w.up_proj, {})};
}

// Gradient of rms_norm with respect to x:  r (u - x r^2 mean(u x)),  u = dout * weight,  r = 1 / rms(x).
at::Tensor rms_norm_backward(const at::Tensor& dout, const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor x32 = x.to(at::kFloat);
  const at::Tensor r = at::rsqrt(at::mean(x32 * x32, {-1}, true) + eps);
  at::Tensor u = dout.to(at::kFloat) * weight.to(at::kFloat);
  const at::Tensor along = at::mean(u * x32, {-1}, true).mul_(r).mul_(r);
  return u.sub_(x32 * along).mul_(r).to(x.scalar_type());
}

at::Tensor edit_pairs(const at::Tensor& q_THd, const QueryEdit& edit) {
  at::Tensor edited_THd = q_THd * edit.keep_Hd.to(q_THd.options());
  if (edit.cross_Hd.defined()) {
    edited_THd = edited_THd + at::roll(q_THd, q_THd.size(2) / 2, 2) * edit.cross_Hd.to(q_THd.options());
  }
  return edited_THd;
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor x32 = x.to(at::kFloat);
  return (x32 * at::rsqrt(at::mean(x32 * x32, {-1}, true) + eps)).to(x.scalar_type()) * weight;
}

AttentionInputs attention_inputs(const Architecture& a, const LayerWeights& w, const at::Tensor& normed_TD,
                                 const RopeTables& rope, const QueryEdit& edit, Linear linear) {
  at::Tensor q_THd = project_heads(normed_TD, w.q_proj, w.q_bias, a.num_heads, a.head_dim, linear);
  at::Tensor k_TGd = project_heads(normed_TD, w.k_proj, w.k_bias, a.num_kv_heads, a.head_dim, linear);
  const at::Tensor v_TGd = project_heads(normed_TD, w.v_proj, w.v_bias, a.num_kv_heads, a.head_dim, linear);
  if (a.family.qk_norm) {
    q_THd = rms_norm(q_THd, w.q_norm, a.rms_norm_eps);
    k_TGd = rms_norm(k_TGd, w.k_norm, a.rms_norm_eps);
  }
  if (edit.ratio_TH.defined()) q_THd = q_THd * edit.ratio_TH.to(q_THd.options()).unsqueeze(2);
  if (edit.keep_Hd.defined()) q_THd = edit_pairs(q_THd, edit);
  q_THd = apply_rope(q_THd, rope);
  if (edit.keep_Hd.defined() && edit.after_rope) q_THd = edit_pairs(q_THd, edit);
  const auto head_major = [](const at::Tensor& x_TNd) { return x_TNd.transpose(0, 1).unsqueeze(0); };
  return {head_major(q_THd), head_major(apply_rope(k_TGd, rope)), head_major(v_TGd)};
}

at::Tensor finish_layer(const Architecture& a, const LayerWeights& w, const at::Tensor& x_TD,
                        const at::Tensor& attention_BHTd, FinishState* state, Linear linear) {
  const at::NoGradGuard no_grad;
  const at::Tensor attention_TF =
      attention_BHTd.squeeze(0).transpose(0, 1).reshape({x_TD.size(0), a.num_heads * a.head_dim});
  FinishState own;
  FinishState& s = state != nullptr ? *state : own;
  s.y_TD = linear(attention_TF, w.o_proj, {}).add_(x_TD);
  const MlpInner mlp = mlp_inner(a, w, s.y_TD, linear);
  s.gate_TI = mlp.gate_TI;
  s.up_TI = mlp.up_TI;
  return linear(at::silu(mlp.gate_TI).mul_(mlp.up_TI), w.down_proj, {}).add_(s.y_TD);
}

FinishGradients finish_layer_backward(const Architecture& a, const LayerWeights& w, const FinishState& state,
                                      const at::Tensor& dout_TD) {
  const at::NoGradGuard no_grad;
  const MlpInner mlp =
      state.gate_TI.defined() ? MlpInner{state.gate_TI, state.up_TI} : mlp_inner(a, w, state.y_TD, library_linear);
  at::Tensor dinner_TI = at::matmul(dout_TD, w.down_proj);
  const at::Tensor dup_TI = at::silu(mlp.gate_TI).mul_(dinner_TI);
  const at::Tensor dgate_TI = at::silu_backward(dinner_TI.mul_(mlp.up_TI), mlp.gate_TI);
  const at::Tensor dnormed_TD = at::matmul(dgate_TI, w.gate_proj).addmm_(dup_TI, w.up_proj);
  at::Tensor dy_TD = rms_norm_backward(dnormed_TD, state.y_TD, w.post_norm, a.rms_norm_eps).add_(dout_TD);
  const at::Tensor dattention_TF = at::matmul(dy_TD, w.o_proj);
  return {dy_TD, dattention_TF.view({dy_TD.size(0), a.num_heads, a.head_dim}).transpose(0, 1).unsqueeze(0)};
}

}  // namespace dms
