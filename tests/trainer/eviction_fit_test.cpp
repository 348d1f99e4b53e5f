#include "trainer/eviction_fit.h"

#include <gtest/gtest.h>

#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

at::Tensor keep_score(const KeepFunction& keep, const at::Tensor& features_ND) {
  return at::matmul(features_ND, keep.weight_GD.t()) + keep.intercept_G;
}

TEST(OrderStatistic, IsTheKthSmallest) {
  const at::Tensor values = at::tensor({5.0, 1.0, 4.0, 2.0, 3.0, 10.0, 9.0, 8.0, 7.0, 6.0}, at::kDouble).view({2, 5});
  EXPECT_EQ(order_statistic(values, 0.7), 7.0);
  EXPECT_EQ(order_statistic(values, 0.75), 7.0);
  EXPECT_EQ(order_statistic(values, 0.0), 1.0);
  EXPECT_EQ(order_statistic(values, 1.0), 10.0);
}

TEST(OrderStatistic, CountsAnEntryAsOftenAsItsWeightSays) {
  const at::Tensor values = at::tensor({5.0, 1.0, 4.0, 2.0}, at::kDouble);
  const at::Tensor weights = at::tensor({1.0, 2.0, 3.0, 4.0}, at::kDouble);
  const at::Tensor repeated = at::tensor({5.0, 1.0, 1.0, 4.0, 4.0, 4.0, 2.0, 2.0, 2.0, 2.0}, at::kDouble);
  for (double fraction : {0.05, 0.1, 0.25, 0.5, 0.55, 0.85, 0.95, 1.0}) {
    const double rounded_up = std::ceil(fraction * 10.0) / 10.0;
    EXPECT_EQ(order_statistic(values, weights, fraction), order_statistic(repeated, rounded_up)) << fraction;
  }
}

TEST(KeepFunction, RecoversASeparableRule) {
  const at::Tensor features_ND = seeded_normal({3000, 12}, 1).to(at::kFloat);
  const at::Tensor rule_GD = seeded_normal({3, 12}, 2).to(at::kFloat);
  const at::Tensor offset_G = at::tensor({2.0F, 0.0F, -4.0F});
  const at::Tensor score_NG = at::matmul(features_ND, rule_GD.t()) + offset_G;
  // Importance is a steep, bent function of the score: only the sign is linear.
  const at::Tensor importance_NG = 0.01 * at::exp(score_NG + 0.3 * at::sin(5.0 * score_NG) * score_NG);
  FitOptions options;
  const KeepFunction keep = fit_keep_function({features_ND, {}, importance_NG, {}}, 0.01, options);
  // What the fit minimises is the cost of wrong decisions; those near the threshold are nearly free.
  const at::Tensor wrong = ((keep_score(keep, features_ND) > 0) != (score_NG > 0)).to(at::kFloat);
  const at::Tensor cost = (importance_NG / 0.01 - 1.0).abs().clamp_max(options.weight_cap);
  EXPECT_LT((at::sum(wrong * cost) / at::sum(cost)).item<double>(), 0.01);
  for (int64_t g = 0; g < 3; ++g) {
    const at::Tensor cosine = at::cosine_similarity(keep.weight_GD[g], rule_GD[g], 0);
    EXPECT_GT(cosine.item<double>(), 0.99) << g;
  }
}

// Behind a q norm every head sees the features multiplied by a factor of its own for each token.
TEST(KeepFunction, RecoversARuleOnScaledFeatures) {
  const at::Tensor features_ND = seeded_normal({3000, 12}, 1).to(at::kFloat);
  const at::Tensor rule_GD = seeded_normal({3, 12}, 2).to(at::kFloat);
  const at::Tensor offset_G = at::tensor({2.0F, 0.0F, -4.0F});
  const at::Tensor scale_NG =
      0.02 * at::exp(0.5 * seeded_normal({3000, 3}, 3).to(at::kFloat)) * at::tensor({1.0F, -1.0F, 2.0F});
  const at::Tensor score_NG = 50.0 * scale_NG * at::matmul(features_ND, rule_GD.t()) + offset_G;
  const at::Tensor importance_NG = 0.01 * at::exp(score_NG);
  for (bool with_intercept : {true, false}) {
    FitOptions options;
    options.with_intercept = with_intercept;
    const KeepFunction keep = fit_keep_function({features_ND, scale_NG, importance_NG, {}}, 0.01, options);
    const at::Tensor fitted_NG = scale_NG * at::matmul(features_ND, keep.weight_GD.t()) + keep.intercept_G;
    const at::Tensor wrong = ((fitted_NG > 0) != (score_NG > 0)).to(at::kFloat);
    const at::Tensor cost = (importance_NG / 0.01 - 1.0).abs().clamp_max(options.weight_cap);
    if (with_intercept) {
      EXPECT_LT((at::sum(wrong * cost) / at::sum(cost)).item<double>(), 0.01);
    }
    for (int64_t g = 0; g < 3; ++g) {
      EXPECT_GT(at::cosine_similarity(keep.weight_GD[g], rule_GD[g], 0).item<double>(), 0.95) << g << with_intercept;
    }
    // Ones are the same as none.
    EXPECT_TRUE(
        is_near(fit_keep_function({features_ND, at::ones({3000, 3}), importance_NG, {}}, 0.01, options).weight_GD,
                fit_keep_function({features_ND, {}, importance_NG, {}}, 0.01, options).weight_GD, 1e-3));
  }
}

TEST(KeepFunction, WithoutInterceptPassesThroughTheOrigin) {
  const at::Tensor features_ND = seeded_normal({500, 4}, 1).to(at::kFloat);
  const at::Tensor importance_NG = at::exp(features_ND.slice(1, 0, 2) + 1.0);
  FitOptions options;
  options.with_intercept = false;
  const KeepFunction keep = fit_keep_function({features_ND, {}, importance_NG, {}}, 1.0, options);
  EXPECT_TRUE(is_bit_equal(keep.intercept_G, at::zeros({2})));
  EXPECT_GT(keep.weight_GD[1][1].item<double>(), 0.5);
}

// 300 keys that cost half a threshold each and three that cost 200 look alike.  Evicting them all costs 3 * 199,
// keeping them 300 * 0.5; their mean log importance says evict.
TEST(KeepFunction, KeepsRareCostlyKeysThatARegressionWouldEvict) {
  const int64_t num_alike = 303, num_others = 3000;
  at::Tensor features_ND = at::zeros({num_alike + num_others, 2});
  features_ND.slice(0, 0, num_alike).select(1, 0).fill_(1.0);
  features_ND.slice(0, num_alike).select(1, 1).copy_(seeded_normal({num_others}, 1));
  at::Tensor importance_NG = at::full({num_alike + num_others, 1}, 0.05);
  importance_NG.slice(0, 0, 300).fill_(0.5);
  importance_NG.slice(0, 300, 303).fill_(200.0);
  const auto score_of_alike = [&](const FitOptions& options) {
    return keep_score(fit_keep_function({features_ND, {}, importance_NG, {}}, 1.0, options), features_ND)[0][0]
        .item<double>();
  };
  FitOptions options;
  options.iterations = 400;
  EXPECT_GT(score_of_alike(options), 0.2);
  FitOptions regression = options;
  regression.iterations = 0;
  EXPECT_LT(score_of_alike(regression), -0.2);
  FitOptions capped = options;
  capped.weight_cap = 20.0;  // 3 * 19 against 150
  EXPECT_LT(score_of_alike(capped), -0.2);
}

}  // namespace
}  // namespace dms
