#include "trainer/row_sample.h"

#include <gtest/gtest.h>

#include "model/noise.h"
#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

TEST(RowCosts, AreTheLargestOverHeadsUpToTheCap) {
  const at::Tensor importance_NG = at::tensor({0.5, 3.0, 1.0, 1.0, 0.0, 900.0}, at::kDouble).view({3, 2});
  EXPECT_TRUE(is_near(row_costs_N(importance_NG, 1.0, 300.0), at::tensor({2.0, 0.0, 300.0}, at::kDouble), 1e-12));
  EXPECT_TRUE(is_near(row_costs_N(importance_NG, 0.5, 1e9), at::tensor({5.0, 1.0, 1799.0}, at::kDouble), 1e-12));
}

TEST(RowSample, HoldsAShareThatStandsForAllRows) {
  constexpr int64_t kNumRows = 40000;
  constexpr double kShare = 0.1;
  // Costs as importance has them: most small, some very large.
  const at::Tensor cost_N = at::exp(2.0 * seeded_normal({kNumRows}, 1)).to(at::kFloat);
  const double mean = cost_N.mean().item<double>();
  const at::Tensor noise_N = logistic_noise_GT(0, 0, 3, 1, 1, kNumRows)[0];
  const RowSample held = sample_rows(cost_N, mean, kShare, noise_N);

  EXPECT_LE(held.row_M.numel(), static_cast<int64_t>(kShare * kNumRows * 1.05));
  EXPECT_GE(held.row_M.numel(), static_cast<int64_t>(kShare * kNumRows * 0.8));
  EXPECT_TRUE(at::all(held.row_M.diff() > 0).item<bool>());
  // Sums over what is held estimate sums over all.
  const at::Tensor held_cost_M = cost_N.index_select(0, held.row_M);
  EXPECT_NEAR(held.weight_M.sum().item<double>() / kNumRows, 1.0, 0.05);
  EXPECT_NEAR((held.weight_M * held_cost_M).sum().item<double>() / (mean * kNumRows), 1.0, 0.03);
  // Whatever costs 2 / share times the mean is certain.
  const at::Tensor certain_N = at::nonzero(cost_N >= 2.0 / kShare * mean).squeeze(1);
  ASSERT_GT(certain_N.numel(), 20);
  EXPECT_TRUE(at::all(at::isin(certain_N, held.row_M)).item<bool>());
  EXPECT_EQ(held.weight_M.min().item<double>(), 1.0);

  const RowSample other = sample_rows(cost_N, mean, kShare, logistic_noise_GT(0, 0, 4, 1, 1, kNumRows)[0]);
  EXPECT_LT(at::isin(other.row_M, held.row_M).to(at::kFloat).mean().item<double>(), 0.6) << "chance has a part in it";
}

}  // namespace
}  // namespace dms
