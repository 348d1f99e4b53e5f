#include "trainer/neuron_choice.h"

#include "model/attention.h"
#include "model/block.h"
#include "model/decoder.h"
#include "trainer/distill.h"
#include "trainer/ordered_sum.h"

namespace dms {

namespace {

// q_HTd, k_GTd: before RoPE, where a channel of q is what would be zeroed.  A key pair's energy is the same on both
// sides of RoPE.
std::vector<BorrowedChannel> least_important(const Architecture& a, const at::Tensor& q_HTd, const at::Tensor& k_GTd) {
  const int64_t half = a.head_dim / 2;
  const at::Tensor query_energy_Hd = at::mean(at::square(q_HTd.to(at::kFloat)), {1});
  const at::Tensor key_energy_Gd = at::mean(at::square(k_GTd.to(at::kFloat)), {1});
  const at::Tensor pair_Gh = (key_energy_Gd.slice(1, 0, half) + key_energy_Gd.slice(1, half)) / 2;
  const at::Tensor pair_Hd = at::cat({pair_Gh, pair_Gh}, 1).repeat_interleave(a.group_size(), 0);
  const at::Tensor importance_GC =
      (query_energy_Hd * pair_Hd).view({a.num_kv_heads, a.group_size() * a.head_dim}).to(at::kCPU);
  const at::Tensor least_G = at::argmin(importance_GC, 1);
  std::vector<BorrowedChannel> channels;
  for (int64_t g = 0; g < a.num_kv_heads; ++g) {
    const int64_t flat = least_G[g].item<int64_t>();
    channels.push_back({g * a.group_size() + flat / a.head_dim, flat % a.head_dim});
  }
  return channels;
}

}  // namespace

std::vector<std::vector<BorrowedChannel>> choose_neurons(WeightSource& source, const RopeTables& rope,
                                                         const Sample& calibration) {
  const at::NoGradGuard no_grad;
  const Architecture& a = source.architecture();
  const DocumentOffsets one_document{0, static_cast<int64_t>(calibration.tokens.size())};
  const RopeTables no_rotation{at::ones_like(rope.cos_Td), at::zeros_like(rope.sin_Td)};
  at::Tensor x_TD = embed_tokens(source, calibration.tokens);
  std::vector<std::vector<BorrowedChannel>> chosen;
  for (int64_t layer = 0; layer < a.num_layers; ++layer) {
    const LayerWeights weights = source.layer(layer);
    const at::Tensor normed_TD = rms_norm(x_TD, weights.input_norm, a.rms_norm_eps);
    const AttentionInputs in = attention_inputs(a, weights, normed_TD, no_rotation, {});
    chosen.push_back(least_important(a, in.q_BHTd.squeeze(0), in.k_BGTd.squeeze(0)));
    x_TD = teacher_layer(a, weights, x_TD, {rope, one_document});
  }
  return chosen;
}

double borrowing_cost_kl(WeightSource& source, const Adapter& adapter, const RopeTables& rope, const Sample& text) {
  const at::NoGradGuard no_grad;
  const Architecture& a = source.architecture();
  const DocumentOffsets one_document{0, static_cast<int64_t>(text.tokens.size())};
  at::Tensor teacher_TD = embed_tokens(source, text.tokens), masked_TD = teacher_TD;
  for (int64_t layer = 0; layer < a.num_layers; ++layer) {
    const LayerWeights weights = source.layer(layer);
    teacher_TD = teacher_layer(a, weights, teacher_TD, {rope, one_document});
    const AttentionInputs in = attention_inputs(a, weights, rms_norm(masked_TD, weights.input_norm, a.rms_norm_eps),
                                                rope, adapter.query_mask_Hd(layer));
    masked_TD =
        finish_layer(a, weights, masked_TD, causal_attention(in.q_BHTd, in.k_BGTd, in.v_BGTd, one_document).out_BHTd);
  }
  const HeadComparison comparison =
      compare_heads({source.final_norm(), source.head(), a.rms_norm_eps}, teacher_TD, masked_TD, text.tokens);
  return ordered_sum(comparison.kl_T) / static_cast<double>(comparison.kl_T.numel());
}

}  // namespace dms
