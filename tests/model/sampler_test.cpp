#include "model/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

namespace dms {
namespace {

const at::Tensor& logits() {  // probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625 at ids 3, 0, 4, 1, 2
  static const at::Tensor tensor = at::log(at::tensor({0.25, 0.0625, 0.0625, 0.5, 0.125}, at::kFloat));
  return tensor;
}

std::map<int32_t, int> draws(const SamplingOptions& options, int count = 4000) {
  std::map<int32_t, int> counts;
  for (int i = 0; i < count; ++i) ++counts[sample_token(logits(), options, 7, static_cast<uint64_t>(i))];
  return counts;
}

std::set<int32_t> drawn(const SamplingOptions& options) {
  std::set<int32_t> ids;
  for (const auto& [id, count] : draws(options)) ids.insert(id);
  return ids;
}

TEST(Sampler, IsGreedyAtTemperatureZero) {
  EXPECT_EQ(sample_token(logits(), {}, 0, 0), 3);
  EXPECT_EQ(sample_token(logits().to(at::kBFloat16), {}, 0, 0), 3);
}

TEST(Sampler, DrawsInProportionToTheTemperedProbabilities) {
  for (const double temperature : {1.0, 0.5, 2.0}) {
    auto counts = draws({.temperature = temperature});
    const at::Tensor p = at::softmax(logits().to(at::kDouble) / temperature, 0);
    for (int32_t id = 0; id < 5; ++id) {
      const double expected = p[id].item<double>();
      // Five standard deviations of a share of 4000 draws.
      EXPECT_NEAR(counts[id] / 4000.0, expected, 5.0 * std::sqrt(expected * (1.0 - expected) / 4000.0)) << id;
    }
  }
}

TEST(Sampler, FiltersKeepWhatTheirNamesSay) {
  EXPECT_EQ(drawn({.temperature = 1.0, .top_k = 2}), (std::set<int32_t>{3, 0}));
  EXPECT_EQ(drawn({.temperature = 1.0, .top_p = 0.7}), (std::set<int32_t>{3, 0}));
  EXPECT_EQ(drawn({.temperature = 1.0, .top_p = 0.8}), (std::set<int32_t>{3, 0, 4}));
  EXPECT_EQ(drawn({.temperature = 1.0, .min_p = 0.2}), (std::set<int32_t>{3, 0, 4}));
  EXPECT_EQ(drawn({.temperature = 1.0, .top_p = 1e-9}), (std::set<int32_t>{3}));
  // Of the two that top-k leaves, the likelier has 2/3 of what remains.
  EXPECT_EQ(drawn({.temperature = 1.0, .top_k = 2, .top_p = 0.6}), (std::set<int32_t>{3}));
}

TEST(Sampler, ADrawIsAFunctionOfSeedSampleAndPosition) {
  const SamplingOptions options{.temperature = 1.5, .seed = 4};
  int different_sample = 0, different_seed = 0;
  for (uint64_t position = 0; position < 50; ++position) {
    const int32_t here = sample_token(logits(), options, 1, position);
    EXPECT_EQ(sample_token(logits(), options, 1, position), here);
    different_sample += sample_token(logits(), options, 2, position) != here;
    different_seed += sample_token(logits(), {.temperature = 1.5, .seed = 5}, 1, position) != here;
  }
  EXPECT_GT(different_sample, 10);
  EXPECT_GT(different_seed, 10);
}

}  // namespace
}  // namespace dms
