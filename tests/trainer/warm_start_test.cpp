#include "trainer/warm_start.h"

#include <gtest/gtest.h>

#include "model/attention.h"
#include "model/block.h"
#include "recipes/user_error.h"
#include "tests/support/tensor_comparison.h"
#include "tests/support/tiny_source.h"
#include "tests/support/tiny_text.h"
#include "trainer/importance.h"

namespace dms {
namespace {

constexpr int64_t kTokens = 96, kSequences = 12, kLayers = 2, kWindow = 8;
// The fit's keys have at least min(64, T / 8 + 1) = 13 far queries.
constexpr int64_t kFittedKeys = kTokens - kWindow - 13;

struct Outcome {
  WarmStartResult result;
  std::vector<double> layer_eviction_rate;  // of the adapter's decisions about the fitted keys
  double kept_share = 0.0;                  // of all fitted keys' importance
};

class WarmStartTest : public ::testing::Test {
 protected:
  WarmStartTest() {
    eviction_.window = kWindow;
    options_.compression = 4.0;
    options_.tokens = kTokens * kSequences;
    for (uint64_t s = 0; s < kSequences; ++s) samples_.push_back(tiny_sample(kTokens, 50 + s));
  }

  std::unique_ptr<Adapter> make(AdapterKind kind, AdapterBias bias) const {
    return make_adapter(eviction_, {kind, 0, bias}, *source_,
                        kind == AdapterKind::neuron
                            ? std::vector<std::vector<BorrowedChannel>>{{{0, 1}, {3, 6}}, {{1, 0}, {2, 5}}}
                            : std::vector<std::vector<BorrowedChannel>>{});
  }

  WarmStartResult fit(
      Adapter& adapter, const std::function<bool()>& stop = [] { return false; }) const {
    return warm_start(
        *source_, adapter, eviction_, options_, true, rope_, samples_, [](int64_t, int64_t) {}, stop, *single_rank());
  }

  // Fits, then measures the adapter's own decisions on the calibration text.
  Outcome fitted(AdapterKind kind, AdapterBias bias) const {
    const auto adapter = make(kind, bias);
    Outcome outcome{fit(*adapter), std::vector<double>(kLayers, 0.0)};
    const Architecture& a = source_.architecture();
    const DocumentOffsets document{0, kTokens};
    double kept = 0.0, all = 0.0;
    for (const Sample& sample : samples_) {
      at::Tensor x_TD = embed_tokens(*source_, sample.tokens);
      for (int64_t layer = 0; layer < kLayers; ++layer) {
        const LayerWeights weights = source_->layer(layer);
        const at::Tensor normed_TD = rms_norm(x_TD, weights.input_norm, a.rms_norm_eps);
        const AttentionInputs in = attention_inputs(a, weights, normed_TD, rope_, {});
        const FlashOutput attention = causal_attention(in.q_BHTd, in.k_BGTd, in.v_BGTd, document);
        const at::Tensor importance_GN =
            key_importance_GT(a, weights, in, attention.out_BHTd, attention.lse_BHT, x_TD, kWindow, document)
                .slice(1, 0, kFittedKeys);
        const at::Tensor evicted_GN =
            decisions_GT(adapter->logit_GT(layer, x_TD, normed_TD).detach(), eviction_.decision_shift, document)
                .slice(1, 0, kFittedKeys) > 0;
        outcome.layer_eviction_rate[static_cast<size_t>(layer)] +=
            evicted_GN.to(at::kDouble).mean().item<double>() / kSequences;
        all += importance_GN.sum().item<double>();
        kept += importance_GN.masked_fill(evicted_GN, 0.0).sum().item<double>();
        x_TD = finish_layer(a, weights, x_TD, attention.out_BHTd);
      }
    }
    outcome.kept_share = kept / all;
    return outcome;
  }

  const TinySource source_;
  const RopeTables rope_ = make_rope_tables(source_.architecture(), kTokens, at::TensorOptions().dtype(at::kFloat));
  EvictionOptions eviction_;
  WarmStartOptions options_;
  std::vector<Sample> samples_;
};

TEST_F(WarmStartTest, MeetsTheBudgetByEvictingWhatMattersLeast) {
  for (AdapterKind kind : {AdapterKind::linear, AdapterKind::neuron}) {
    for (AdapterBias bias : {AdapterBias::per_head, AdapterBias::none}) {
      for (int64_t shift : {0, 1}) {
        SCOPED_TRACE(::testing::Message()
                     << "kind " << static_cast<int>(kind) << " bias " << static_cast<int>(bias) << " shift " << shift);
        eviction_.decision_shift = shift;
        const Outcome outcome = fitted(kind, bias);
        EXPECT_EQ(outcome.result.tokens, kTokens * kSequences);
        ASSERT_EQ(outcome.result.layer_eviction_rate.size(), static_cast<size_t>(kLayers));
        for (size_t layer = 0; layer < kLayers; ++layer) {
          // What the result says is what the adapter does, but for ties with the threshold: in layer 0 scores are a
          // function of the token, which may occur several times among the 1800 decisions.
          EXPECT_NEAR(outcome.layer_eviction_rate[layer], outcome.result.layer_eviction_rate[layer], 5e-3);
        }
        EXPECT_NEAR((outcome.layer_eviction_rate[0] + outcome.layer_eviction_rate[1]) / 2.0, 0.75, 5e-3);
        // A quarter of the keys at random would hold a quarter of the importance.
        EXPECT_GT(outcome.kept_share, shift == 0 ? 0.4 : 0.3) << outcome.kept_share;
      }
    }
  }
}

// A fit that may hold half the rows finds nearly the same evictor, and meets the budget on all of them.
TEST_F(WarmStartTest, OfMoreTokensThanAFitHoldsASampleStandsForAll) {
  const Outcome all = fitted(AdapterKind::linear, AdapterBias::per_head);
  options_.fit_rows = kFittedKeys * kSequences / 2;
  const Outcome half = fitted(AdapterKind::linear, AdapterBias::per_head);
  EXPECT_LT(half.result.bytes, all.result.bytes);
  EXPECT_EQ(half.result.threshold, all.result.threshold);
  for (size_t layer = 0; layer < kLayers; ++layer) {
    EXPECT_NEAR(half.layer_eviction_rate[layer], half.result.layer_eviction_rate[layer], 0.05);
  }
  EXPECT_NEAR((half.layer_eviction_rate[0] + half.layer_eviction_rate[1]) / 2.0, 0.75, 0.05);
  EXPECT_GT(half.kept_share, 0.9 * all.kept_share);
}

TEST_F(WarmStartTest, WithoutBiasMovesTheOneOffset) {
  const auto adapter = make(AdapterKind::linear, AdapterBias::none);
  const double before = adapter->alpha_offset();
  fit(*adapter);
  EXPECT_NE(adapter->alpha_offset(), before);
  const auto with_bias = make(AdapterKind::linear, AdapterBias::per_head);
  fit(*with_bias);
  EXPECT_EQ(with_bias->alpha_offset(), before);
}

TEST_F(WarmStartTest, IsAFunctionOfItsInputs) {
  const auto first = make(AdapterKind::linear, AdapterBias::per_head),
             second = make(AdapterKind::linear, AdapterBias::per_head);
  EXPECT_EQ(fit(*first).threshold, fit(*second).threshold);
  for (size_t p = 0; p < first->parameters().size(); ++p) {
    EXPECT_TRUE(is_bit_equal(second->parameters()[p].tensor, first->parameters()[p].tensor));
  }
}

TEST_F(WarmStartTest, StopsBetweenLayersWithTheAdapterUntouched) {
  const auto adapter = make(AdapterKind::linear, AdapterBias::per_head);
  int64_t asked = 0;
  EXPECT_THROW(fit(*adapter, [&] { return ++asked == 2; }), Interrupted);
  for (const Adapter::Parameter& p : adapter->layer_parameters(0)) {
    const double expected =
        p.name.ends_with("norm.weight") ? source_->layer(0).input_norm.abs().max().item<double>() : 0.0;
    EXPECT_EQ(p.tensor.abs().max().item<double>(), expected) << p.name;
  }
}

}  // namespace
}  // namespace dms
