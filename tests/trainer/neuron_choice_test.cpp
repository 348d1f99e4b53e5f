#include "trainer/neuron_choice.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/attention.h"
#include "model/block.h"
#include "model/decoder.h"
#include "tests/support/dense_model.h"
#include "tests/support/tensor_comparison.h"
#include "tests/support/tiny_source.h"
#include "tests/support/tiny_text.h"
#include "trainer/removal_cost.h"

namespace dms {
namespace {

constexpr int64_t kTokens = 40;

// Makes rows of a projection zero.
void silence(std::vector<RawTensor>& tensors, int64_t layer, const std::string& projection,
             const std::vector<int64_t>& rows) {
  const std::string name = "model.layers." + std::to_string(layer) + ".self_attn." + projection + ".weight";
  for (RawTensor& tensor : tensors) {
    if (tensor.name != name) continue;
    const size_t row_bytes = static_cast<size_t>(tensor.shape[1]) * 4;
    for (int64_t row : rows) std::memset(tensor.bytes.data() + static_cast<size_t>(row) * row_bytes, 0, row_bytes);
    return;
  }
  FAIL() << "no tensor " << name;
}

Sample text() { return tiny_sample(kTokens, 3); }

RopeTables rope_of(const TinySource& source) {
  return make_rope_tables(source.architecture(), kTokens, at::TensorOptions().dtype(at::kFloat));
}

TEST(NeuronChoice, PicksThePlantedDeadChannels) {
  // H = 4, G = 2, d = 8: query row h * 8 + c.
  const TinySource source({}, [](std::vector<RawTensor>& tensors) {
    silence(tensors, 0, "q_proj", {1 * 8 + 6, 2 * 8 + 0});
    silence(tensors, 1, "q_proj", {0 * 8 + 3});
    silence(tensors, 1, "k_proj", {1 * 8 + 1, 1 * 8 + 5});  // the rotary pair (1, 5) of KV head 1
  });
  const auto chosen = choose_neurons(*source, {}, {}, rope_of(source), text());
  ASSERT_EQ(chosen.size(), 2U);
  ASSERT_EQ(chosen[0].size(), 2U);
  EXPECT_EQ(chosen[0][0].head, 1);
  EXPECT_EQ(chosen[0][0].channel, 6);
  EXPECT_EQ(chosen[0][1].head, 2);
  EXPECT_EQ(chosen[0][1].channel, 0);
  EXPECT_EQ(chosen[1][0].head, 0);
  EXPECT_EQ(chosen[1][0].channel, 3);
  EXPECT_TRUE(chosen[1][1].head == 2 || chosen[1][1].head == 3);
  EXPECT_TRUE(chosen[1][1].channel == 1 || chosen[1][1].channel == 5);
}

// A query channel meets both channels of its rotary pair in the keys: half a dead pair is not dead.
TEST(NeuronChoice, WeighsBothKeyChannelsOfTheRotaryPair) {
  const TinySource source({}, [](std::vector<RawTensor>& tensors) {
    silence(tensors, 0, "k_proj", {1, 2, 6});  // KV head 0: channel 1 alone, and the pair (2, 6)
  });
  const auto chosen = choose_neurons(*source, {}, {}, rope_of(source), text());
  EXPECT_TRUE(chosen[0][0].channel == 2 || chosen[0][0].channel == 6) << chosen[0][0].channel;
}

TEST(BorrowingCost, IsNothingForDeadChannels) {
  const TinySource source({}, [](std::vector<RawTensor>& tensors) {
    for (int64_t layer : {0, 1}) silence(tensors, layer, "q_proj", {0, 16});
  });
  const auto adapter =
      make_adapter({}, {AdapterKind::neuron, 0, AdapterBias::none}, *source, {{{0, 0}, {2, 0}}, {{0, 0}, {2, 0}}});
  EXPECT_LT(std::abs(borrowing_cost_kl(*source, *adapter, rope_of(source), text()).all), 1e-7);
}

TEST(BorrowingCost, IsTheKlOfTheModelWithoutTheChannels) {
  const TinySource source;
  const auto adapter = make_adapter({}, {AdapterKind::neuron, 0, AdapterBias::none}, *source,
                                    {{{0, 0}, {3, 2}}, {{1, 7, 0.7F}, {2, 5, -2.0F}}});
  const Sample sample = text();
  const at::Tensor teacher_TV = dense_log_probabilities_TV(*source, sample.tokens, {0, kTokens});
  // Without the channels of `only`, or of every layer.
  const auto expected = [&](int64_t only) {
    const at::Tensor masked_TV = dense_log_probabilities_TV(
        *source, sample.tokens, {0, kTokens}, 0, [&](int64_t layer, const at::Tensor&, const at::Tensor&) {
          DenseEviction eviction{at::zeros({2, kTokens}, at::kDouble), {}};
          if (only < 0 || only == layer) {
            eviction.kept_Hdd = dense_kept_queries_Hdd(*adapter, source.architecture(), layer);
          }
          return eviction;
        });
    return dense_kl_T(teacher_TV, masked_TV).mean().item<double>();
  };
  const BorrowingCost cost = borrowing_cost_kl(*source, *adapter, rope_of(source), sample);
  EXPECT_GT(expected(-1), 1e-4);
  EXPECT_NEAR(cost.all, expected(-1), 1e-4 * expected(-1));
  ASSERT_EQ(cost.of_layer_L.size(), 2U);
  for (int64_t layer : {0, 1}) {
    EXPECT_NEAR(cost.of_layer_L[static_cast<size_t>(layer)], expected(layer), 1e-4 * expected(layer));
  }
}

// The attention output's move, by taking a direction out of the scores and running softmax again, a little of it at a
// time: the quadratic form is its second-order term.
TEST(RemovalCost, IsTheFirstOrderMoveOfTheAttentionOutput) {
  const TinySource source;
  const Architecture& a = source.architecture();
  const RopeTables rope = rope_of(source), none{at::ones_like(rope.cos_Td), at::zeros_like(rope.sin_Td)};
  const at::Tensor x_TD = embed_tokens(*source, text().tokens);
  const LayerWeights weights = source->layer(0);
  const at::Tensor normed_TD = rms_norm(x_TD, weights.input_norm, a.rms_norm_eps);
  const AttentionInputs before = attention_inputs(a, weights, normed_TD, none, {});
  const AttentionInputs after = attention_inputs(a, weights, normed_TD, rope, {});
  const FlashOutput attention = causal_attention(after.q_BHTd, after.k_BGTd, after.v_BGTd, {0, kTokens});
  const at::Tensor cost_H33 = removal_cost_H33(a, weights, before, after, rope, attention.lse_BHT, x_TD);

  const int64_t d = a.head_dim;
  for (int64_t head : {0, 3}) {
    double lowest = 1e30;
    for (double angle : {0.0, 0.4, 1.2, M_PI / 2, 2.5}) {
      constexpr double kShare = 1e-3;  // of the direction's part of the query
      at::Tensor u_d = at::zeros({d}, at::kDouble);
      u_d[d / 2 - 1] = std::cos(angle);
      u_d[d - 1] = std::sin(angle);
      const auto f64 = [](const at::Tensor& x) { return x.to(at::kDouble); };
      const at::Tensor q_Td = f64(before.q_BHTd[0][head]);
      const at::Tensor changed_Td = q_Td - kShare * at::outer(at::mv(q_Td, u_d), u_d);
      const RopeTables rope64{f64(rope.cos_Td), f64(rope.sin_Td)};
      const at::Tensor k_Td = f64(after.k_BGTd[0][head / a.group_size()]);
      const at::Tensor v_Td = f64(after.v_BGTd[0][head / a.group_size()]);
      const auto output = [&](const at::Tensor& query_Td) {
        const at::Tensor rotated_Td = apply_rope(query_Td.unsqueeze(1), rope64).squeeze(1);
        const at::Tensor score_TT = at::matmul(rotated_Td, k_Td.t()) / std::sqrt(static_cast<double>(d));
        const at::Tensor future_TT = at::ones({kTokens, kTokens}, at::kBool).triu(1);
        return at::matmul(at::softmax(score_TT.masked_fill(future_TT, -1e30), -1), v_Td);
      };
      const at::Tensor moved_TD =
          at::matmul(output(changed_Td) - output(q_Td), f64(weights.o_proj).slice(1, head * d, (head + 1) * d).t()) /
          kShare;
      const double expected =
          at::mean(at::sum(at::square(moved_TD), {1}) / at::sum(at::square(f64(x_TD)), {1})).item<double>();
      EXPECT_NEAR(removal_at(cost_H33[head], angle).cost, expected, 1e-2 * expected) << head << " at " << angle;
      lowest = std::min(lowest, expected);
    }
    const Removal cheapest = cheapest_removal(cost_H33[head]);
    EXPECT_LE(cheapest.cost, lowest);
    EXPECT_NEAR(cheapest.cost, removal_at(cost_H33[head], cheapest.angle).cost, 1e-12);
  }
}

TEST(NeuronChoice, TheLastChannelTurnsToADeadDirectionOfTheLastPair) {
  // KV head 0: head 1's queries have no component along a direction of the last pair (channels 3 and 7 of 8).
  const double angle = 0.6;
  const TinySource source({}, [&](std::vector<RawTensor>& tensors) {
    for (RawTensor& tensor : tensors) {
      if (tensor.name != "model.layers.0.self_attn.q_proj.weight") continue;
      auto* rows = reinterpret_cast<float*>(tensor.bytes.data());
      const int64_t width = tensor.shape[1];
      float *first = rows + (8 + 3) * width, *second = rows + (8 + 7) * width;
      for (int64_t i = 0; i < width; ++i) {
        const double along = std::cos(angle) * first[i] + std::sin(angle) * second[i];
        first[i] -= static_cast<float>(std::cos(angle) * along);
        second[i] -= static_cast<float>(std::sin(angle) * along);
      }
    }
  });
  AdapterOptions options{AdapterKind::neuron, 0, AdapterBias::none, AdapterChannel::last};
  const auto chosen = choose_neurons(*source, options, {}, rope_of(source), text());
  EXPECT_EQ(chosen[0][0].head, 1);
  EXPECT_EQ(chosen[0][0].channel, 7);
  // e_7 turned by t is (-sin t, cos t) = +-(cos angle, sin angle).
  const double turn = chosen[0][0].angle;
  EXPECT_NEAR(std::abs(-std::sin(turn) * std::cos(angle) + std::cos(turn) * std::sin(angle)), 1.0, 1e-5);
}

}  // namespace
}  // namespace dms
