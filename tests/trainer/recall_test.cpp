#include "trainer/recall.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/dense_model.h"
#include "tests/support/tensor_comparison.h"
#include "tests/support/tiny_source.h"

namespace dms {
namespace {

constexpr int64_t kText = 60, kKvHeads = 2;

// The dense model over the text, a question and its answer: which tokens of the answer are likeliest, and their NLL.
void expect_fact(const RecallRecord::Fact& fact, size_t method, const PlantedFact& asked, const at::Tensor& log_p_TV) {
  const int64_t first = kText + std::ssize(asked.question) - 1;
  bool recalled = true;
  double nll = 0.0;
  for (int64_t i = 0; i < std::ssize(asked.answer); ++i) {
    const int32_t token = asked.answer[static_cast<size_t>(i)];
    recalled = recalled && log_p_TV[first + i].argmax().item<int64_t>() == token;
    nll -= log_p_TV[first + i][token].item<double>();
  }
  EXPECT_EQ(fact.recalled[method], recalled) << method;
  EXPECT_NEAR(fact.answer_nll[method], nll / static_cast<double>(asked.answer.size()), 2e-5) << method;
}

TEST(Recall, EqualsTheDenseModelUnderEachMethod) {
  const TinySource source;
  EvictionOptions eviction;
  eviction.window = 8;
  const auto adapter = make_adapter(eviction, {AdapterKind::linear, 0, AdapterBias::per_head}, *source, {});
  for (int64_t layer = 0; layer < source.architecture().num_layers; ++layer) {
    adapter->set_logit_function(layer,
                                0.3 * seeded_normal({kKvHeads, 32}, 40 + static_cast<uint64_t>(layer)).to(at::kFloat),
                                at::tensor({1.0F, -1.5F}));
  }
  // One answer is what the model says by itself, so that something is recalled.
  PlantedText text;
  for (int64_t t = 0; t < kText; ++t) text.tokens.push_back(static_cast<int32_t>(t * 37 % 101));
  text.facts = {{false, 50, {5, 6, 7}, {8, 9}}, {true, 20, {11, 12}, {0}}};
  const auto sequence = [&](const PlantedFact& fact) {
    std::vector<int32_t> tokens = text.tokens;
    tokens.insert(tokens.end(), fact.question.begin(), fact.question.end());
    tokens.insert(tokens.end(), fact.answer.begin(), fact.answer.end() - 1);
    return tokens;
  };
  const auto dense = [&](const PlantedFact& fact) {
    const std::vector<int32_t> tokens = sequence(fact);
    return dense_log_probabilities_TV(*source, tokens, {0, std::ssize(tokens)});
  };
  text.facts[1].answer[0] = dense(text.facts[1])[kText + 1].argmax().item<int32_t>();

  int64_t last_done = 0;
  const RecallRecord record =
      evaluate_recall(*source, *adapter, eviction, {text, text}, [&](int64_t done, int64_t total) {
        EXPECT_EQ(total, 6);
        EXPECT_EQ(done, ++last_done);
      });
  EXPECT_EQ(last_done, 6);
  ASSERT_EQ(record.facts.size(), 4U);
  EXPECT_EQ(record.live_keys[0], 2 * source.architecture().num_layers * kKvHeads * kText);
  EXPECT_LT(record.live_keys[1], record.live_keys[0]);
  const auto per_head =
      static_cast<double>(record.live_keys[1]) / static_cast<double>(2 * source.architecture().num_layers * kKvHeads);
  EXPECT_EQ(record.baseline_live_keys, static_cast<int64_t>(std::ceil(per_head)));
  EXPECT_EQ(record.live_keys[2], 2 * source.architecture().num_layers * kKvHeads * record.baseline_live_keys);
  for (size_t f = 0; f < record.facts.size(); ++f) {
    const PlantedFact& asked = text.facts[f % 2];
    EXPECT_EQ(record.facts[f].distance, asked.distance);
    EXPECT_EQ(record.facts[f].is_number, asked.is_number);
    expect_fact(record.facts[f], 0, asked, dense(asked));
    const std::vector<int32_t> tokens = sequence(asked);
    const auto count = std::ssize(tokens);
    expect_fact(
        record.facts[f], 1, asked,
        dense_log_probabilities_TV(
            *source, tokens, {0, count}, eviction.window,
            [&](int64_t layer, const at::Tensor& x_TD, const at::Tensor& normed_TD) {
              const at::Tensor logit_GT =
                  dense_eviction_logit_GT(*adapter, eviction, dense_parameters(*adapter),
                                          source.architecture().rms_norm_eps, layer, x_TD, normed_TD)
                      .detach();
              const at::Tensor dec_GT = dense_decisions_GT(logit_GT, eviction.decision_shift, {0, count});
              return DenseEviction{at::zeros({kKvHeads, count}, at::kDouble).masked_fill(dec_GT > 0, -1e30), {}};
            }));
    at::Tensor sinks_GT = at::full({kKvHeads, count}, -1e30, at::kDouble);
    sinks_GT.slice(1, 0, 4).zero_();
    expect_fact(record.facts[f], 2, asked,
                dense_log_probabilities_TV(*source, tokens, {0, count}, record.baseline_live_keys - 5,
                                           [&](int64_t, const at::Tensor&, const at::Tensor&) {
                                             return DenseEviction{sinks_GT, {}};
                                           }));
  }
  EXPECT_TRUE(record.facts[1].recalled[0]);
}

}  // namespace
}  // namespace dms
