#include "model/block.h"

#include <ATen/core/grad_mode.h>

namespace dms {

namespace {

at::Tensor project_heads(const at::Tensor& normed_TD, const at::Tensor& weight, const at::Tensor& bias,
                         int64_t num_heads, int64_t head_dim, Linear linear) {
  return linear(normed_TD, weight, bias).view({normed_TD.size(0), num_heads, head_dim});
}

int64_t num_mlp_pieces(int64_t num_rows) { return (num_rows + kMlpRows - 1) / kMlpRows; }

// Calls visit(index, begin, end) for every piece of the rows that the MLP takes at a time.
template <class Visit>
void for_mlp_pieces(int64_t num_rows, const Visit& visit) {
  const int64_t count = num_mlp_pieces(num_rows);
  for (int64_t i = 0; i < count; ++i) visit(i, num_rows * i / count, num_rows * (i + 1) / count);
}

MlpInner mlp_inner(const Architecture& a, const LayerWeights& w, const at::Tensor& y_nD, Linear linear) {
  const at::Tensor normed_nD = rms_norm(y_nD, w.post_norm, a.rms_norm_eps);
  return {linear(normed_nD, w.gate_proj, {}), linear(normed_nD, w.up_proj, {})};
}

// out_TD = y_TD + MLP(RMSNorm(y_TD)); the two may be one.  Leaves the inner projections in `kept` unless it is null.
void add_mlp(const Architecture& a, const LayerWeights& w, const at::Tensor& y_TD, const at::Tensor& out_TD,
             std::vector<MlpInner>* kept, Linear linear) {
  for_mlp_pieces(y_TD.size(0), [&](int64_t, int64_t begin, int64_t end) {
    const at::Tensor y_nD = y_TD.slice(0, begin, end);
    at::Tensor out_nD = out_TD.slice(0, begin, end);
    MlpInner inner = mlp_inner(a, w, y_nD, linear);
    at::add_out(out_nD, linear(at::silu(inner.gate_nI).mul_(inner.up_nI), w.down_proj, {}), y_nD);
    if (kept != nullptr) kept->push_back(std::move(inner));
  });
}

// Gradient of the MLP's normalised input, from that of its output.
at::Tensor mlp_backward(const LayerWeights& w, const MlpInner& inner, const at::Tensor& dout_nD) {
  at::Tensor dinner_nI = at::matmul(dout_nD, w.down_proj);
  const at::Tensor dup_nI = at::silu(inner.gate_nI).mul_(dinner_nI);
  const at::Tensor dgate_nI = at::silu_backward(dinner_nI.mul_(inner.up_nI), inner.gate_nI);
  return at::matmul(dgate_nI, w.gate_proj).addmm_(dup_nI, w.up_proj);
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
  return (x32 * at::rsqrt(at::mean(x32 * x32, {-1}, true) + eps)).to(x.scalar_type()).mul_(weight);
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

int64_t largest_mlp_piece(int64_t num_rows) {
  const int64_t count = num_mlp_pieces(num_rows);
  return count == 0 ? 0 : (num_rows + count - 1) / count;
}

at::Tensor add_attention(const Architecture& a, const LayerWeights& w, const at::Tensor& x_TD,
                         const at::Tensor& attention_BHTd, Linear linear) {
  const at::NoGradGuard no_grad;
  const at::Tensor attention_TF =
      attention_BHTd.squeeze(0).transpose(0, 1).reshape({x_TD.size(0), a.num_heads * a.head_dim});
  return linear(attention_TF, w.o_proj, {}).add_(x_TD);
}

at::Tensor finish_layer(const Architecture& a, const LayerWeights& w, const at::Tensor& x_TD,
                        const at::Tensor& attention_BHTd, Linear linear) {
  const at::NoGradGuard no_grad;
  const at::Tensor y_TD = add_attention(a, w, x_TD, attention_BHTd, linear);
  add_mlp(a, w, y_TD, y_TD, nullptr, linear);
  return y_TD;
}

at::Tensor finish_layer(const Architecture& a, const LayerWeights& w, const at::Tensor& x_TD,
                        const at::Tensor& attention_BHTd, KeptOfMlp kept, FinishState& state) {
  const at::NoGradGuard no_grad;
  state = {add_attention(a, w, x_TD, attention_BHTd), {}};
  const at::Tensor out_TD = at::empty_like(state.y_TD);
  add_mlp(a, w, state.y_TD, out_TD, kept == KeptOfMlp::nothing ? nullptr : &state.mlp, library_linear);
  return out_TD;
}

FinishGradients finish_layer_backward(const Architecture& a, const LayerWeights& w, const FinishState& state,
                                      const at::Tensor& dout_TD) {
  const at::NoGradGuard no_grad;
  const at::Tensor dy_TD = at::empty_like(dout_TD);
  for_mlp_pieces(dout_TD.size(0), [&](int64_t i, int64_t begin, int64_t end) {
    const at::Tensor y_nD = state.y_TD.slice(0, begin, end), dout_nD = dout_TD.slice(0, begin, end);
    at::Tensor dy_nD = dy_TD.slice(0, begin, end);
    const at::Tensor dnormed_nD = mlp_backward(
        w, state.mlp.empty() ? mlp_inner(a, w, y_nD, library_linear) : state.mlp[static_cast<size_t>(i)], dout_nD);
    at::add_out(dy_nD, rms_norm_backward(dnormed_nD, y_nD, w.post_norm, a.rms_norm_eps), dout_nD);
  });
  const at::Tensor dattention_TF = at::matmul(dy_TD, w.o_proj);
  return {dy_TD, dattention_TF.view({dy_TD.size(0), a.num_heads, a.head_dim}).transpose(0, 1).unsqueeze(0)};
}

}  // namespace dms
