#include "model/noise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

struct Place {
  uint64_t seed = 42;
  int64_t step = 3, sample = 17, layer = 5;
};

at::Tensor noise_at(const Place& p) { return logistic_noise_GT(p.seed, p.step, p.sample, p.layer, 3, 64); }

// A run that is resumed by a later build must see the noise of the earlier one.  Computed by another program from the
// definition of Philox4x32-10: key = seed, counter = (token, layer and head, sample, step).
TEST(Noise, KeepsItsGoldenValues) {
  const at::Tensor noise_GT = logistic_noise_GT(42, 3, 17, 5, 2, 3);
  const std::vector<float> expected{4.5284796F, 0.68366563F, -1.9902469F, 1.1661963F, -0.83800894F, -1.9745177F};
  EXPECT_TRUE(is_bit_equal(noise_GT, at::tensor(expected).view({2, 3})));
}

TEST(Noise, IsLogistic) {
  const at::Tensor x = logistic_noise_GT(1, 0, 0, 0, 8, 25000).to(at::kDouble).view({-1});
  const double variance = std::numbers::pi * std::numbers::pi / 3.0;
  // Five standard errors: variance / N, and kurtosis 4.2 gives Var(s^2) = 3.2 variance^2 / N.
  const double n = static_cast<double>(x.numel());
  EXPECT_NEAR(x.mean().item<double>(), 0.0, 5.0 * std::sqrt(variance / n));
  EXPECT_NEAR(x.var().item<double>(), variance, 5.0 * std::sqrt(3.2 / n) * variance);
  for (double threshold : {-4.0, -1.0, 0.0, 0.5, 3.0}) {
    const double p = 1.0 / (1.0 + std::exp(-threshold));
    EXPECT_NEAR((x < threshold).to(at::kDouble).mean().item<double>(), p, 5.0 * std::sqrt(p * (1.0 - p) / n));
  }
}

TEST(Noise, DoesNotDependOnTheOrderOrSizeOfCalls) {
  const at::Tensor first = noise_at({}).clone();
  noise_at({.seed = 7});
  noise_at({.layer = 2});
  EXPECT_TRUE(is_bit_equal(noise_at({}), first));
  const at::Tensor smaller_GT = logistic_noise_GT(42, 3, 17, 5, 2, 20);
  EXPECT_TRUE(is_bit_equal(smaller_GT, first.slice(0, 0, 2).slice(1, 0, 20).contiguous()));
}

TEST(Noise, DiffersInEveryCoordinate) {
  const std::vector<Place> places{{},
                                  {.seed = 43},
                                  {.step = 4},
                                  {.sample = 18},
                                  {.layer = 6},
                                  {.step = 17, .sample = 3},
                                  {.step = int64_t{1} << 31},
                                  {.sample = (int64_t{1} << 32) - 1}};
  std::vector<at::Tensor> rows;
  for (const Place& place : places) {
    for (const at::Tensor& row_T : noise_at(place).unbind(0)) rows.push_back(row_T);
  }
  // Rows of 64 independent values correlate by 0.125 at random; 0.6 is five times that.
  const at::Tensor correlation = at::corrcoef(at::stack(rows)).fill_diagonal_(0.0);
  EXPECT_LT(correlation.abs().max().item<double>(), 0.6);
  const at::Tensor tokens = std::get<0>(at::sort(rows.front()));
  EXPECT_GT((tokens.slice(0, 1) - tokens.slice(0, 0, -1)).min().item<double>(), 0.0);
}

TEST(Noise, RefusesCountersThatWouldWrap) {
  EXPECT_THROW(noise_at({.step = int64_t{1} << 32}), c10::Error);
  EXPECT_THROW(noise_at({.sample = -1}), c10::Error);
  EXPECT_THROW(noise_at({.layer = 1 << 16}), c10::Error);
}

}  // namespace
}  // namespace dms
