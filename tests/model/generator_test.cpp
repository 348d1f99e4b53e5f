#include "model/generator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "model/adapter.h"
#include "recipes/user_error.h"
#include "tests/support/dense_model.h"
#include "tests/support/tensor_comparison.h"
#include "tests/support/tiny_source.h"
#include "tests/support/tiny_text.h"

namespace dms {
namespace {

class GeneratorTest : public ::testing::Test {
 protected:
  GeneratorTest() {
    eviction_.window = 6;
    const Architecture& a = source_.architecture();
    adapter_ = make_adapter(eviction_, {AdapterKind::linear, 0, AdapterBias::per_head}, *source_, {});
    for (int64_t layer = 0; layer < a.num_layers; ++layer) {
      adapter_->set_logit_function(
          layer, 0.3 * seeded_normal({2, 32}, 40 + static_cast<uint64_t>(layer)).to(at::kFloat), at::zeros({2}));
    }
    policy_ = adapter_policy(*adapter_, eviction_);
    options_.max_positions = 200;
  }

  std::vector<GenerationRequest> requests(const std::vector<int64_t>& lengths, int64_t new_tokens) {
    std::vector<GenerationRequest> requests;
    for (size_t i = 0; i < lengths.size(); ++i) {
      requests.push_back({tiny_tokens(lengths[i], static_cast<int>(60 + i)), new_tokens, {}, i});
    }
    return requests;
  }

  std::vector<std::vector<int32_t>> generate(const EvictionPolicy& policy,
                                             const std::vector<GenerationRequest>& requests) {
    std::vector<std::vector<int32_t>> tokens(requests.size());
    std::vector<bool> ended(requests.size(), false);
    Generator(*source_, policy, options_)
        .run(
            requests,
            [&](size_t request, int32_t token, bool is_last, const CompactCache&) {
              EXPECT_FALSE(ended[request]);
              tokens[request].push_back(token);
              ended[request] = is_last;
            },
            [&](const GenerationProgress& progress) {
              last_ = progress;
              return true;
            });
    EXPECT_EQ(std::count(ended.begin(), ended.end(), true), static_cast<int64_t>(requests.size()));
    return tokens;
  }

  // Greedy choice after every prefix of prompt + generated, by the dense masked network; ties closer than 1e-3 pass.
  void expect_dense_greedy(const GenerationRequest& request, const std::vector<int32_t>& generated, bool evict) {
    std::vector<int32_t> all = request.prompt;
    all.insert(all.end(), generated.begin(), generated.end());
    const auto num_tokens = static_cast<int64_t>(all.size());
    DenseEvictor evictor;
    const DenseParameters parameters = dense_parameters(*adapter_);
    if (evict) {
      evictor = [&](int64_t layer, const at::Tensor& x_TD, const at::Tensor& normed_TD) -> DenseEviction {
        const at::Tensor logit_GT = dense_eviction_logit_GT(
            *adapter_, eviction_, parameters, source_.architecture().rms_norm_eps, layer, x_TD, normed_TD);
        const at::Tensor gone_GT = dense_decisions_GT(logit_GT, 1, {0, num_tokens}) > 0;
        return {at::zeros_like(logit_GT).masked_fill(gone_GT, kGoneBias), {}};
      };
    }
    const at::Tensor log_p_TV = dense_log_probabilities_TV(*source_, all, {0, num_tokens}, eviction_.window, evictor);
    for (size_t i = 0; i < generated.size(); ++i) {
      const at::Tensor row = log_p_TV[static_cast<int64_t>(request.prompt.size() + i) - 1];
      EXPECT_GE(row[generated[i]].item<double>(), row.max().item<double>() - 1e-3) << "generated token " << i;
    }
  }

  TinySource source_;
  EvictionOptions eviction_;
  std::unique_ptr<Adapter> adapter_;
  std::unique_ptr<EvictionPolicy> policy_, keep_ = keep_everything_policy(2);
  GeneratorOptions options_;
  GenerationProgress last_;
};

TEST_F(GeneratorTest, GreedyIsTheDenseMaskedNetworkForABatchOfAnyLengths) {
  const auto batch = requests({1, 5, 30, 90}, 25);
  const auto tokens = generate(*policy_, batch);
  for (size_t i = 0; i < batch.size(); ++i) {
    SCOPED_TRACE(i);
    ASSERT_EQ(tokens[i].size(), 25U);
    expect_dense_greedy(batch[i], tokens[i], true);
  }
  EXPECT_LT(last_.peak_allocated_bytes, (26 + 30 + 55 + 115) * 2 * 2 * 2 * 8 * 4) << "nothing was ever freed";
}

TEST_F(GeneratorTest, WithNothingEvictedItIsTheTeacher) {
  const auto batch = requests({3, 40}, 15);
  const auto tokens = generate(*keep_everything_policy(2), batch);
  for (size_t i = 0; i < batch.size(); ++i) expect_dense_greedy(batch[i], tokens[i], false);
}

TEST_F(GeneratorTest, WhatASequenceSaysDependsOnNothingElseInTheBatch) {
  auto batch = requests({4, 9, 30}, 20);
  for (auto& request : batch) request.sampling = {.temperature = 1.0, .top_p = 0.9, .seed = 3};
  const auto together = generate(*policy_, batch);
  options_.max_batch = 1;
  EXPECT_EQ(generate(*policy_, batch), together);
  // A budget that holds one sequence and a half: the younger ones are put off and computed again.
  options_.max_batch = 16;
  const KvPool pool(8, at::TensorOptions().dtype(at::kFloat), tight_layout(at::kCPU));
  options_.kv_budget_bytes = 22 * pool.page_bytes();
  EXPECT_EQ(generate(*policy_, batch), together);
  EXPECT_LE(last_.peak_allocated_bytes, options_.kv_budget_bytes);
}

TEST_F(GeneratorTest, SinksAndWindowKeepEachSequencesOwnSinks) {
  // The batch's first sequence is past its sinks when the others' stand at the newest position.
  const auto streaming = sinks_and_window_policy(2, kNumSinks, 9);
  const auto batch = requests({30, 1, 2, 3}, 40);
  const auto together = generate(*streaming, batch);
  options_.max_batch = 1;
  EXPECT_EQ(generate(*streaming, batch), together);
}

TEST_F(GeneratorTest, NeverExceedsAnExactBudget) {
  const auto batch = requests({3, 60, 120}, 40);
  const auto free = generate(*policy_, batch);
  options_.exact_budget_bytes = 4 * 160 * (2 * 8 * 4 + 8);  // of every token: nothing ever has to go
  options_.exact_budget_bytes *= 2;
  EXPECT_EQ(generate(*policy_, batch), free);

  options_.exact_budget_bytes = 4 * 32 * (2 * 8 * 4 + 8);  // 32 rows a head
  int64_t most = 0;
  for (const std::unique_ptr<EvictionPolicy>* policy : {&policy_, &keep_}) {
    Generator(*source_, **policy, options_)
        .run(
            batch,
            [&](size_t, int32_t, bool, const CompactCache& cache) {
              most = std::max(most, cache.allocated_bytes());
              ASSERT_LE(cache.allocated_bytes(), options_.exact_budget_bytes);
            },
            [](const GenerationProgress&) { return true; });
  }
  EXPECT_GT(most, options_.exact_budget_bytes * 8 / 10) << "throws away much more than it must";
  options_.exact_budget_bytes = 4 * 6 * (2 * 8 * 4 + 8);  // the window is 7 tokens
  EXPECT_THROW(generate(*policy_, batch), UserError);
}

TEST_F(GeneratorTest, EndsAtAStopToken) {
  const auto batch = requests({10}, 30);
  const auto tokens = generate(*policy_, batch);
  options_.stop_tokens = {tokens[0][7]};
  const auto first = std::find(tokens[0].begin(), tokens[0].end(), tokens[0][7]);
  EXPECT_EQ(generate(*policy_, batch)[0], std::vector<int32_t>(tokens[0].begin(), first + 1));
}

TEST_F(GeneratorTest, StopsWhenToldTo) {
  int steps = 0;
  Generator(*source_, *policy_, options_)
      .run(
          requests({4}, 50), [](size_t, int32_t, bool, const CompactCache&) {},
          [&](const GenerationProgress&) { return ++steps < 3; });
  EXPECT_EQ(steps, 3);
}

TEST_F(GeneratorTest, RefusesPromptsThatCannotFit) {
  EXPECT_THROW(generate(*policy_, requests({0}, 1)), UserError);
  EXPECT_THROW(generate(*policy_, requests({190}, 11)), UserError);
  options_.kv_budget_bytes = 1000;
  EXPECT_THROW(generate(*policy_, requests({20}, 1)), UserError);
}

}  // namespace
}  // namespace dms
