#include "model/decoder.h"

#include <ATen/core/grad_mode.h>

#include "model/attention.h"
#include "model/block.h"

namespace dms {

at::Tensor embed_tokens(WeightSource& source, const std::vector<int32_t>& tokens) {
  return embed_sequences(source, {tokens}).front();
}

std::vector<at::Tensor> embed_sequences(WeightSource& source, const std::vector<std::vector<int32_t>>& sequences) {
  std::vector<at::Tensor> ids, embedded;
  for (const std::vector<int32_t>& tokens : sequences) {
    ids.push_back(at::tensor(at::ArrayRef<int32_t>(tokens.data(), tokens.size()), at::kInt).to(at::kLong));
  }
  const int64_t num_slices = source.num_vocabulary_slices();
  for (int64_t i = 0; i < num_slices; ++i) {
    const auto [begin, rows_VD] = source.embedding_slice(i);
    for (size_t s = 0; s < ids.size(); ++s) {
      if (num_slices == 1) {
        embedded.push_back(rows_VD.index_select(0, ids[s].to(rows_VD.device())));
        continue;
      }
      if (i == 0) embedded.push_back(at::empty({ids[s].numel(), rows_VD.size(1)}, rows_VD.options()));
      const at::Tensor here_n =
          at::nonzero(at::logical_and(ids[s] >= begin, ids[s] < begin + rows_VD.size(0))).select(1, 0);
      const at::Tensor rows_n = ids[s].index_select(0, here_n) - begin;
      embedded[s].index_copy_(0, here_n.to(rows_VD.device()), rows_VD.index_select(0, rows_n.to(rows_VD.device())));
    }
  }
  return embedded;
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
