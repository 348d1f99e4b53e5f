#include "trainer/neuron_choice.h"

#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "model/attention.h"
#include "model/block.h"
#include "model/decoder.h"
#include "recipes/user_error.h"
#include "trainer/distill.h"
#include "trainer/removal_cost.h"

namespace dms {

namespace {

// Text that decides costs a pass over [T, T] scores a head: this much of it is enough.
constexpr int64_t kCalibrationTokens = 2048;
// The per-layer costs take half a pass over the model each.
constexpr int64_t kPerLayerTokens = 256;

// The largest decision that the channel can carry, in logit units above the threshold.
double reach(const Architecture& a, const LayerWeights& weights, const EvictionOptions& eviction, int64_t channel) {
  if (!a.family.qk_norm) return std::numeric_limits<double>::infinity();
  const double weight = std::abs(weights.q_norm[channel].item<double>());
  return eviction.alpha_scale * weight * std::sqrt(static_cast<double>(a.head_dim)) - std::abs(eviction.alpha_offset);
}

// As far above the threshold as logits start below it.
bool can_carry_decisions(const Architecture& a, const LayerWeights& weights, const EvictionOptions& eviction,
                         int64_t channel) {
  return reach(a, weights, eviction, channel) > std::abs(eviction.alpha_offset);
}

// q_HTd, k_GTd: before RoPE, where a channel of q is what would be zeroed.  A key pair's energy is the same on both
// sides of RoPE.
std::vector<BorrowedChannel> least_important(const Architecture& a, const LayerWeights& weights,
                                             const EvictionOptions& eviction, const at::Tensor& q_HTd,
                                             const at::Tensor& k_GTd) {
  const int64_t half = a.head_dim / 2;
  const at::Tensor query_energy_Hd = at::mean(at::square(q_HTd.to(at::kFloat)), {1});
  const at::Tensor key_energy_Gd = at::mean(at::square(k_GTd.to(at::kFloat)), {1});
  const at::Tensor pair_Gh = (key_energy_Gd.slice(1, 0, half) + key_energy_Gd.slice(1, half)) / 2;
  const at::Tensor pair_Hd = at::cat({pair_Gh, pair_Gh}, 1).repeat_interleave(a.group_size(), 0);
  at::Tensor importance_Hd = (query_energy_Hd * pair_Hd).to(at::kCPU);
  for (int64_t channel = 0; channel < a.head_dim; ++channel) {
    if (!can_carry_decisions(a, weights, eviction, channel)) {
      importance_Hd.select(1, channel).fill_(std::numeric_limits<float>::infinity());
    }
  }
  const at::Tensor importance_GC = importance_Hd.view({a.num_kv_heads, a.group_size() * a.head_dim});
  const at::Tensor least_G = at::argmin(importance_GC, 1);
  std::vector<BorrowedChannel> channels;
  for (int64_t g = 0; g < a.num_kv_heads; ++g) {
    const int64_t flat = least_G[g].item<int64_t>();
    channels.push_back({g * a.group_size() + flat / a.head_dim, flat % a.head_dim});
  }
  return channels;
}

// The head and the direction in its last rotary pair that cost least, as channel d-1 turned by an angle.
std::vector<BorrowedChannel> cheapest_last(const Architecture& a, const at::Tensor& cost_H33) {
  std::vector<BorrowedChannel> channels;
  for (int64_t g = 0; g < a.num_kv_heads; ++g) {
    BorrowedChannel chosen;
    double lowest = std::numeric_limits<double>::infinity();
    for (int64_t head = g * a.group_size(); head < (g + 1) * a.group_size(); ++head) {
      const at::Tensor cost_33 = cost_H33[head];
      // Channel d-1 is the direction at pi/2; a turn from there is possible only where nothing but RoPE follows.
      const Removal removal = a.family.qk_norm ? removal_at(cost_33, std::numbers::pi / 2) : cheapest_removal(cost_33);
      if (removal.cost >= lowest) continue;
      lowest = removal.cost;
      const double turn = removal.angle - std::numbers::pi / 2;
      chosen = {head, a.head_dim - 1, a.family.qk_norm ? 0.0F : static_cast<float>(turn)};
    }
    channels.push_back(chosen);
  }
  return channels;
}

// Passes [T, D] through a layer with the adapter's channels taken out.
at::Tensor masked_layer(const Architecture& a, const LayerWeights& weights, const Adapter& adapter, int64_t layer,
                        const at::Tensor& x_TD, const SequenceContext& sequence) {
  const at::Tensor normed_TD = rms_norm(x_TD, weights.input_norm, a.rms_norm_eps);
  const AttentionInputs in =
      attention_inputs(a, weights, normed_TD, sequence.rope, adapter.read(layer, x_TD, normed_TD).query);
  const FlashOutput attention = causal_attention(in.q_BHTd, in.k_BGTd, in.v_BGTd, sequence.documents);
  return finish_layer(a, weights, x_TD, attention.out_BHTd);
}

// Of each of `masked`, per position.
std::vector<double> mean_kl(WeightSource& source, const at::Tensor& teacher_TD, const std::vector<at::Tensor>& masked) {
  const auto num_tokens = static_cast<size_t>(teacher_TD.size(0));
  std::vector<DistillationSample> samples;
  for (const at::Tensor& masked_TD : masked) {
    samples.push_back({teacher_TD, masked_TD, std::vector<uint8_t>(num_tokens, 1)});
  }
  std::vector<double> means = kl_sums(source, samples, {});
  for (double& mean : means) mean /= static_cast<double>(num_tokens);
  return means;
}

std::vector<int32_t> first_tokens(const Sample& sample, int64_t count) {
  const auto end = sample.tokens.begin() + std::min<int64_t>(count, static_cast<int64_t>(sample.tokens.size()));
  return {sample.tokens.begin(), end};
}

}  // namespace

std::vector<std::vector<BorrowedChannel>> choose_neurons(WeightSource& source, const AdapterOptions& options,
                                                         const EvictionOptions& eviction, const RopeTables& rope,
                                                         const Sample& calibration) {
  const at::NoGradGuard no_grad;
  const Architecture& a = source.architecture();
  const std::vector<int32_t> tokens = first_tokens(calibration, kCalibrationTokens);
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  const DocumentOffsets one_document{0, num_tokens};
  const RopeTables tables = rope.slice(0, num_tokens);
  const RopeTables no_rotation{at::ones_like(tables.cos_Td), at::zeros_like(tables.sin_Td)};
  at::Tensor x_TD = embed_tokens(source, tokens);
  std::vector<std::vector<BorrowedChannel>> chosen;
  for (int64_t layer = 0; layer < a.num_layers; ++layer) {
    const LayerWeights weights = source.layer(layer);
    const at::Tensor normed_TD = rms_norm(x_TD, weights.input_norm, a.rms_norm_eps);
    const AttentionInputs unrotated = attention_inputs(a, weights, normed_TD, no_rotation, {});
    const AttentionInputs in = attention_inputs(a, weights, normed_TD, tables, {});
    const FlashOutput attention = causal_attention(in.q_BHTd, in.k_BGTd, in.v_BGTd, one_document);
    if (options.channel == AdapterChannel::any) {
      chosen.push_back(least_important(a, weights, eviction, unrotated.q_BHTd.squeeze(0), unrotated.k_BGTd.squeeze(0)));
    } else {
      chosen.push_back(cheapest_last(a, removal_cost_H33(a, weights, unrotated, in, tables, attention.lse_BHT, x_TD)));
    }
    const int64_t channel = chosen.back().front().channel;
    if (!can_carry_decisions(a, weights, eviction, channel)) {
      throw UserError("adapter.channel",
                      "the q norm of layer " + std::to_string(layer) + " keeps channel " + std::to_string(channel) +
                          " too small to carry a decision",
                      {options.channel == AdapterChannel::last ? "set adapter.channel: any, or adapter.kind: linear"
                                                               : "set adapter.kind: linear"});
    }
    x_TD = finish_layer(a, weights, x_TD, attention.out_BHTd);
  }
  return chosen;
}

BorrowingCost borrowing_cost_kl(WeightSource& source, const Adapter& adapter, const RopeTables& rope,
                                const Sample& text) {
  const at::NoGradGuard no_grad;
  const Architecture& a = source.architecture();
  BorrowingCost cost;
  {
    const DocumentOffsets one_document{0, static_cast<int64_t>(text.tokens.size())};
    const SequenceContext sequence{rope, one_document};
    at::Tensor teacher_TD = embed_tokens(source, text.tokens), masked_TD = teacher_TD;
    for (int64_t layer = 0; layer < a.num_layers; ++layer) {
      const LayerWeights weights = source.layer(layer);
      teacher_TD = teacher_layer(a, weights, teacher_TD, sequence);
      masked_TD = masked_layer(a, weights, adapter, layer, masked_TD, sequence);
    }
    cost.all = mean_kl(source, teacher_TD, {masked_TD}).front();
  }
  // One layer at a time: layer outermost, so that each layer's weights are brought in once for all variants.
  const std::vector<int32_t> few = first_tokens(text, kPerLayerTokens);
  const DocumentOffsets one_document{0, static_cast<int64_t>(few.size())};
  const RopeTables tables = rope.slice(0, one_document.back());
  const SequenceContext sequence{tables, one_document};
  at::Tensor teacher_TD = embed_tokens(source, few);
  std::vector<at::Tensor> masked;  // [T, D] with the channels of one earlier layer taken out
  for (int64_t layer = 0; layer < a.num_layers; ++layer) {
    const LayerWeights weights = source.layer(layer);
    for (at::Tensor& masked_TD : masked) masked_TD = teacher_layer(a, weights, masked_TD, sequence);
    masked.push_back(masked_layer(a, weights, adapter, layer, teacher_TD, sequence));
    teacher_TD = teacher_layer(a, weights, teacher_TD, sequence);
  }
  cost.of_layer_L = mean_kl(source, teacher_TD, masked);
  return cost;
}

}  // namespace dms
