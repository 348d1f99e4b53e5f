#include "trainer/neuron_choice.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/support/dense_model.h"
#include "tests/support/tensor_comparison.h"
#include "tests/support/tiny_source.h"
#include "tests/support/tiny_text.h"

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
  const auto chosen = choose_neurons(*source, rope_of(source), text());
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
  const auto chosen = choose_neurons(*source, rope_of(source), text());
  EXPECT_TRUE(chosen[0][0].channel == 2 || chosen[0][0].channel == 6) << chosen[0][0].channel;
}

TEST(BorrowingCost, IsNothingForDeadChannels) {
  const TinySource source({}, [](std::vector<RawTensor>& tensors) {
    for (int64_t layer : {0, 1}) silence(tensors, layer, "q_proj", {0, 16});
  });
  const auto adapter =
      make_adapter({}, {AdapterKind::neuron, 0, AdapterBias::none}, *source, {{{0, 0}, {2, 0}}, {{0, 0}, {2, 0}}});
  EXPECT_LT(std::abs(borrowing_cost_kl(*source, *adapter, rope_of(source), text())), 1e-7);
}

TEST(BorrowingCost, IsTheKlOfTheModelWithoutTheChannels) {
  const TinySource source;
  const auto adapter =
      make_adapter({}, {AdapterKind::neuron, 0, AdapterBias::none}, *source, {{{0, 0}, {3, 2}}, {{1, 7}, {2, 5}}});
  const Sample sample = text();
  const at::Tensor teacher_TV = dense_log_probabilities_TV(*source, sample.tokens, {0, kTokens});
  const at::Tensor masked_TV = dense_log_probabilities_TV(
      *source, sample.tokens, {0, kTokens}, 0, [&](int64_t layer, const at::Tensor&, const at::Tensor&) {
        return DenseEviction{at::zeros({2, kTokens}, at::kDouble), adapter->query_mask_Hd(layer)};
      });
  const double expected = dense_kl_T(teacher_TV, masked_TV).mean().item<double>();
  EXPECT_GT(expected, 1e-4);
  EXPECT_NEAR(borrowing_cost_kl(*source, *adapter, rope_of(source), sample), expected, 1e-4 * expected);
}

}  // namespace
}  // namespace dms
