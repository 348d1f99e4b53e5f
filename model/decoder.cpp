#include "model/decoder.h"

#include "model/attention.h"
#include "model/block.h"

namespace dms {

at::Tensor embed_tokens(WeightSource& source, const std::vector<int32_t>& tokens) {
  const at::Tensor embedding_VD = source.embedding();
  const at::Tensor ids_T = at::tensor(at::ArrayRef<int32_t>(tokens.data(), tokens.size()), at::kInt);
  return embedding_VD.index_select(0, ids_T.to(embedding_VD.device()));
}

at::Tensor teacher_layer(const Architecture& architecture, const LayerWeights& weights, const at::Tensor& x_TD,
                         const SequenceContext& sequence) {
  const at::NoGradGuard no_grad;
  const at::Tensor normed_TD = rms_norm(x_TD, weights.input_norm, architecture.rms_norm_eps);
  const AttentionInputs in = attention_inputs(architecture, weights, normed_TD, sequence.rope, {});
  const FlashOutput attention = causal_attention(in.q_BHTd, in.k_BGTd, in.v_BGTd, sequence.documents);
  return finish_layer(architecture, weights, x_TD, attention.out_BHTd);
}

at::Tensor unbiased_student_layer(const Architecture& architecture, const LayerWeights& weights, int64_t window,
                                  AttentionPath path, const at::Tensor& x_TD, const SequenceContext& sequence) {
  const at::NoGradGuard no_grad;
  const at::Tensor normed_TD = rms_norm(x_TD, weights.input_norm, architecture.rms_norm_eps);
  const AttentionInputs in = attention_inputs(architecture, weights, normed_TD, sequence.rope, {});
  const at::Tensor no_bias_BGT =
      at::zeros({1, architecture.num_kv_heads, x_TD.size(0)}, x_TD.options().dtype(at::kFloat));
  return finish_layer(
      architecture, weights, x_TD,
      delayed_eviction_attention(in.q_BHTd, in.k_BGTd, in.v_BGTd, no_bias_BGT, window, sequence.documents, path));
}

}  // namespace dms
