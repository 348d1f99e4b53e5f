#include "model/block.h"

namespace dms {

namespace {

at::Tensor project_heads(const at::Tensor& normed_TD, const at::Tensor& weight, const at::Tensor& bias,
                         int64_t num_heads, int64_t head_dim) {
  return at::linear(normed_TD, weight, bias).view({normed_TD.size(0), num_heads, head_dim});
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor x32 = x.to(at::kFloat);
  return (x32 * at::rsqrt(at::mean(x32 * x32, {-1}, true) + eps)).to(x.scalar_type()) * weight;
}

AttentionInputs attention_inputs(const Architecture& a, const LayerWeights& w, const at::Tensor& normed_TD,
                                 const RopeTables& rope, const at::Tensor& query_mask_Hd) {
  at::Tensor q_THd = project_heads(normed_TD, w.q_proj, w.q_bias, a.num_heads, a.head_dim);
  at::Tensor k_TGd = project_heads(normed_TD, w.k_proj, w.k_bias, a.num_kv_heads, a.head_dim);
  const at::Tensor v_TGd = project_heads(normed_TD, w.v_proj, w.v_bias, a.num_kv_heads, a.head_dim);
  if (a.family.qk_norm) {
    q_THd = rms_norm(q_THd, w.q_norm, a.rms_norm_eps);
    k_TGd = rms_norm(k_TGd, w.k_norm, a.rms_norm_eps);
  }
  if (query_mask_Hd.defined()) q_THd = q_THd * query_mask_Hd.to(q_THd.scalar_type());
  const auto head_major = [](const at::Tensor& x_TNd) { return x_TNd.transpose(0, 1).unsqueeze(0); };
  return {head_major(apply_rope(q_THd, rope)), head_major(apply_rope(k_TGd, rope)), head_major(v_TGd)};
}

at::Tensor finish_layer(const Architecture& a, const LayerWeights& w, const at::Tensor& x_TD,
                        const at::Tensor& attention_BHTd) {
  const at::Tensor attention_TF = attention_BHTd.squeeze(0).transpose(0, 1).reshape({x_TD.size(0), -1});
  const at::Tensor y_TD = x_TD + at::linear(attention_TF, w.o_proj);
  const at::Tensor normed_TD = rms_norm(y_TD, w.post_norm, a.rms_norm_eps);
  const at::Tensor gated = at::silu(at::linear(normed_TD, w.gate_proj)) * at::linear(normed_TD, w.up_proj);
  return y_TD + at::linear(gated, w.down_proj);
}

}  // namespace dms
