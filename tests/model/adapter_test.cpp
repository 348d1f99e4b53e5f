#include "model/adapter.h"

#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <vector>

#include "model/block.h"
#include "tests/support/dense_model.h"
#include "tests/support/tensor_comparison.h"
#include "tests/support/tiny_source.h"

namespace dms {
namespace {

constexpr int64_t kTokens = 11;
const TinyModel kModel{.num_heads = 8, .num_kv_heads = 4, .head_dim = 8};
// Head g * R + g % R lends channel 2 + g in layer 0, 7 - g in layer 1.
const std::vector<std::vector<BorrowedChannel>> kBorrowed{{{0, 2}, {3, 3}, {4, 4}, {7, 5}},
                                                          {{0, 7}, {3, 6}, {4, 5}, {7, 4}}};

std::vector<AdapterOptions> all_options() {
  std::vector<AdapterOptions> all;
  for (AdapterBias bias : {AdapterBias::per_head, AdapterBias::none}) {
    all.push_back({AdapterKind::linear, 0, bias});
    for (int64_t rank : {0, 1, 6}) all.push_back({AdapterKind::neuron, rank, bias});
  }
  return all;
}

class AdapterTest : public ::testing::Test {
 protected:
  std::unique_ptr<Adapter> make(const AdapterOptions& options) const {
    return make_adapter(eviction_, options, *source_,
                        options.kind == AdapterKind::neuron ? kBorrowed : std::vector<std::vector<BorrowedChannel>>{});
  }

  // Every parameter moved away from its start.
  static void randomise(Adapter& adapter) {
    const at::NoGradGuard no_grad;
    uint64_t seed = 100;
    for (Adapter::Parameter& p : adapter.parameters()) p.tensor.add_(0.05 * seeded_normal(p.tensor.sizes(), ++seed));
  }

  at::Tensor normed(int64_t layer) const {
    return rms_norm(x_TD_, source_->layer(layer).input_norm, source_.architecture().rms_norm_eps);
  }

  const TinySource source_{kModel};
  EvictionOptions eviction_;
  const at::Tensor x_TD_ = seeded_normal({kTokens, 32}, 1).to(at::kFloat);
};

TEST_F(AdapterTest, StartsAtMinusTheOffsetForEveryTokenAndHead) {
  for (const AdapterOptions& options : all_options()) {
    const auto adapter = make(options);
    EXPECT_TRUE(is_bit_equal(adapter->logit_GT(1, x_TD_, normed(1)).contiguous(),
                             at::full({4, kTokens}, -eviction_.alpha_offset, at::kFloat)));
  }
}

TEST_F(AdapterTest, LogitIsTheFormulaWrittenOut) {
  eviction_.alpha_scale = 30.0;
  eviction_.alpha_offset = 2.5;
  for (const AdapterOptions& options : all_options()) {
    const auto adapter = make(options);
    randomise(*adapter);
    const DenseParameters parameters = dense_parameters(*adapter);
    for (int64_t layer = 0; layer < 2; ++layer) {
      const at::Tensor expected_GT =
          dense_eviction_logit_GT(*adapter, eviction_, parameters, source_.architecture().rms_norm_eps, layer,
                                  x_TD_.to(at::kDouble), normed(layer).to(at::kDouble));
      EXPECT_TRUE(is_near(adapter->logit_GT(layer, x_TD_, normed(layer)), expected_GT, 1e-6));
      EXPECT_EQ(adapter->logit_GT(layer, x_TD_.to(at::kBFloat16), normed(layer).to(at::kBFloat16)).scalar_type(),
                at::kFloat);
    }
  }
}

TEST_F(AdapterTest, LinearFoldsIntoTheNormedInput) {
  const auto adapter = make({AdapterKind::linear, 0, AdapterBias::none});
  randomise(*adapter);
  const auto parameters = adapter->layer_parameters(1);
  const at::Tensor folded_GD =
      (parameters[0].tensor * (parameters[1].tensor / source_->layer(1).input_norm)).detach().to(at::kDouble);
  const at::Tensor expected_GT =
      eviction_.alpha_scale * at::matmul(folded_GD, normed(1).to(at::kDouble).t()) - eviction_.alpha_offset;
  EXPECT_TRUE(is_near(adapter->logit_GT(1, x_TD_, normed(1)), expected_GT, 1e-6));
}

TEST_F(AdapterTest, ParametersHaveTheNamesOfTheAdapterFileLayerByLayer) {
  const auto names = [&](const AdapterOptions& options) {
    std::string text;
    for (const Adapter::Parameter& p : make(options)->parameters()) {
      EXPECT_TRUE(p.tensor.requires_grad() && p.tensor.is_leaf() && p.tensor.scalar_type() == at::kFloat);
      text += p.name + "\n";
    }
    return text;
  };
  EXPECT_EQ(names({AdapterKind::linear, 0, AdapterBias::per_head}),
            "model.layers.0.self_attn.dms_proj_alpha.weight\n"
            "model.layers.0.self_attn.dms_proj_alpha_norm.weight\n"
            "model.layers.0.self_attn.dms_proj_alpha.bias\n"
            "model.layers.1.self_attn.dms_proj_alpha.weight\n"
            "model.layers.1.self_attn.dms_proj_alpha_norm.weight\n"
            "model.layers.1.self_attn.dms_proj_alpha.bias\n");
  EXPECT_EQ(names({AdapterKind::neuron, 0, AdapterBias::none}),
            "model.layers.0.self_attn.dms_neuron.weight\n"
            "model.layers.1.self_attn.dms_neuron.weight\n");
  EXPECT_EQ(names({AdapterKind::neuron, 2, AdapterBias::per_head}),
            "model.layers.0.self_attn.dms_neuron.lora_A.weight\n"
            "model.layers.0.self_attn.dms_neuron.lora_B.weight\n"
            "model.layers.0.self_attn.dms_neuron.bias\n"
            "model.layers.1.self_attn.dms_neuron.lora_A.weight\n"
            "model.layers.1.self_attn.dms_neuron.lora_B.weight\n"
            "model.layers.1.self_attn.dms_neuron.bias\n");
}

TEST_F(AdapterTest, NeuronTakesItsChannelsOutOfTheScoreBeforeRope) {
  const auto adapter = make({AdapterKind::neuron, 0, AdapterBias::none});
  EXPECT_FALSE(make({AdapterKind::linear, 0, AdapterBias::none})->read(0, x_TD_, normed(0)).query.keep_Hd.defined());
  for (int64_t layer = 0; layer < 2; ++layer) {
    at::Tensor expected_Hd = at::ones({8, 8}, at::kFloat);
    LayerWeights weights = source_->layer(layer);
    weights.q_proj = weights.q_proj.clone();
    for (const BorrowedChannel& c : kBorrowed[static_cast<size_t>(layer)]) {
      expected_Hd[c.head][c.channel] = 0.0;
      weights.q_proj[c.head * 8 + c.channel] = 0.0;  // the same as never having computed the channel
    }
    const QueryEdit edit = adapter->read(layer, x_TD_, normed(layer)).query;
    EXPECT_TRUE(is_bit_equal(edit.keep_Hd, expected_Hd));
    const Architecture& a = source_.architecture();
    const RopeTables rope = make_rope_tables(a, kTokens, x_TD_.options());
    const AttentionInputs masked = attention_inputs(a, source_->layer(layer), normed(layer), rope, edit);
    const AttentionInputs expected = attention_inputs(a, weights, normed(layer), rope, {});
    EXPECT_TRUE(is_near(masked.q_BHTd, expected.q_BHTd, 1e-7));
    EXPECT_TRUE(is_bit_equal(masked.k_BGTd.contiguous(), expected.k_BGTd.contiguous()));
  }
}

TEST_F(AdapterTest, NeuronSavesItsBorrowedChannels) {
  const auto constants = make({AdapterKind::neuron, 3, AdapterBias::none})->constants();
  ASSERT_EQ(constants.size(), 2U);
  EXPECT_EQ(constants[1].first, "model.layers.1.self_attn.dms_neuron.index");
  EXPECT_TRUE(is_bit_equal(constants[1].second, at::tensor({0, 7, 3, 6, 4, 5, 7, 4}, at::kLong).view({4, 2})));
  EXPECT_TRUE(make({AdapterKind::linear, 0, AdapterBias::none})->constants().empty());
}

TEST_F(AdapterTest, NeuronRefusesAChannelOutsideTheGroup) {
  auto borrowed = kBorrowed;
  borrowed[1][2] = {3, 1};  // head 3 belongs to KV head 1
  EXPECT_THROW(make_adapter(eviction_, {AdapterKind::neuron, 0, AdapterBias::none}, *source_, borrowed), c10::Error);
}

TEST_F(AdapterTest, SetLogitFunctionIsExactAtFullRank) {
  const at::Tensor weight_GD = seeded_normal({4, 32}, 7).to(at::kFloat);
  const at::Tensor intercept_G = seeded_normal({4}, 8).to(at::kFloat);
  for (const AdapterOptions& options : all_options()) {
    if (options.rank == 1) continue;  // rank 6 is more than the four heads need
    const auto adapter = make(options);
    const bool per_head = options.bias == AdapterBias::per_head;
    const at::Tensor wanted_G = per_head ? intercept_G : at::full({4}, -eviction_.alpha_offset, at::kFloat);
    adapter->set_logit_function(1, weight_GD, wanted_G);
    const at::Tensor features_TD = adapter->features_TD(1, x_TD_, normed(1));
    const at::Tensor expected_GT =
        at::matmul(weight_GD.to(at::kDouble), features_TD.detach().to(at::kDouble).t()) + wanted_G.unsqueeze(1);
    EXPECT_TRUE(is_near(adapter->logit_GT(1, x_TD_, normed(1)), expected_GT, 2e-6));
  }
}

TEST_F(AdapterTest, SetLogitFunctionIsTheBestOfItsRank) {
  const at::Tensor weight_GD = seeded_normal({4, 32}, 7).to(at::kFloat);
  const at::Tensor singular = std::get<1>(at::linalg_svd(weight_GD.to(at::kDouble)));
  for (int64_t rank : {1, 2, 3}) {
    const auto adapter = make({AdapterKind::neuron, rank, AdapterBias::none});
    adapter->set_logit_function(0, weight_GD, at::full({4}, -eviction_.alpha_offset, at::kFloat));
    const auto parameters = adapter->layer_parameters(0);
    const at::Tensor product_GD = eviction_.alpha_scale * at::matmul(parameters[1].tensor, parameters[0].tensor);
    const at::Tensor error = at::linalg_norm((product_GD.detach() - weight_GD).to(at::kDouble));
    EXPECT_TRUE(is_near(error, at::linalg_norm(singular.slice(0, rank)), 1e-5)) << "Eckart-Young, rank " << rank;
  }
}

TEST_F(AdapterTest, WithoutBiasSeveralInterceptsAreRefused) {
  for (AdapterKind kind : {AdapterKind::linear, AdapterKind::neuron}) {
    const auto adapter = make({kind, 0, AdapterBias::none});
    const at::Tensor weight_GD = at::zeros({4, 32}, at::kFloat);
    EXPECT_THROW(adapter->set_logit_function(0, weight_GD, at::tensor({-5.0F, -5.0F, -5.0F, -4.0F})), c10::Error);
    EXPECT_THROW(adapter->set_logit_function(0, weight_GD, at::full({4}, -3.0F)), c10::Error);
    adapter->set_alpha_offset(3.0);
    adapter->set_logit_function(0, weight_GD, at::full({4}, -3.0F));
    EXPECT_TRUE(is_bit_equal(adapter->logit_GT(0, x_TD_, normed(0)).contiguous(), at::full({4, kTokens}, -3.0F)));
  }
}

TEST_F(AdapterTest, LoadParametersRestoresEveryOneAndNamesWhatIsWrong) {
  const auto saved = make({AdapterKind::linear, 0, AdapterBias::per_head});
  randomise(*saved);
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const Adapter::Parameter& p : saved->parameters()) tensors.emplace_back(p.name, p.tensor.detach().clone());
  const auto loaded = make({AdapterKind::linear, 0, AdapterBias::per_head});
  load_parameters(*loaded, tensors);
  for (size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_TRUE(is_bit_equal(loaded->parameters()[i].tensor, tensors[i].second));
  }
  const auto message = [&] {
    try {
      load_parameters(*loaded, tensors);
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  tensors.back().second = at::zeros({5});
  EXPECT_EQ(message(), "adapter tensor 'model.layers.1.self_attn.dms_proj_alpha.bias' has the wrong shape");
  tensors.pop_back();
  EXPECT_EQ(message(), "adapter tensor 'model.layers.1.self_attn.dms_proj_alpha.bias' is missing");
}

TEST_F(AdapterTest, WhatIsBorrowedMayLieAtAnAngleInItsRotaryPair) {
  const std::vector<std::vector<BorrowedChannel>> turned{{{0, 7, 0.5F}, {3, 3, 2.0F}, {4, 4, 0.0F}, {7, 7, -1.0F}},
                                                         {{1, 7, 0.1F}, {2, 7, 1.5F}, {5, 7, 3.0F}, {6, 7, -2.0F}}};
  const Architecture& a = source_.architecture();
  const RopeTables rope = make_rope_tables(a, kTokens, x_TD_.options());
  for (bool after_rope : {false, true}) {
    AdapterOptions options{AdapterKind::neuron, 0, AdapterBias::none};
    options.zero_after_rope = after_rope;
    const auto adapter = make_adapter(eviction_, options, *source_, turned);
    for (int64_t layer = 0; layer < 2; ++layer) {
      for (double share : {0.0, 0.25, 1.0}) {
        adapter->set_borrowed_share(share);
        const AttentionInputs plain = attention_inputs(a, source_->layer(layer), normed(layer), rope, {});
        const AttentionInputs edited = attention_inputs(a, source_->layer(layer), normed(layer), rope,
                                                        adapter->read(layer, x_TD_, normed(layer)).query);
        // A turn in the plane of the pair commutes with RoPE, but the projection on a direction does not.
        at::Tensor kept_Hdd = dense_kept_queries_Hdd(*adapter, a, layer);
        kept_Hdd = (1 - share) * kept_Hdd + share * at::eye(a.head_dim, at::kDouble);
        LayerWeights weights = source_->layer(layer);
        const at::Tensor rows_HdD = weights.q_proj.view({a.num_heads, a.head_dim, -1}).to(at::kDouble);
        weights.q_proj = at::bmm(kept_Hdd, rows_HdD).reshape_as(weights.q_proj).to(at::kFloat);
        at::Tensor expected_HTd =
            attention_inputs(a, weights, normed(layer), rope, {}).q_BHTd.squeeze(0).to(at::kDouble);
        if (after_rope) expected_HTd = at::bmm(expected_HTd, kept_Hdd);
        EXPECT_TRUE(is_near(edited.q_BHTd.squeeze(0), expected_HTd, 1e-6));
        EXPECT_EQ(share == 1.0, at::allclose(edited.q_BHTd, plain.q_BHTd));
      }
    }
  }
}

}  // namespace
}  // namespace dms
