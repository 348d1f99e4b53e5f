#include "model/eviction.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

// logit[g, t] = 100 g + t + 1, so that every value names its head and token.
at::Tensor numbered_logits(int64_t num_heads, int64_t num_tokens) {
  return 100.0 * at::arange(num_heads, at::kDouble).unsqueeze(1) + at::arange(1, num_tokens + 1, at::kDouble);
}

// Relaxes logits whose z is exactly `z`, without shift.
Relaxation relaxed_at(const at::Tensor& z_GT, double truncate_at) {
  EvictionOptions options;
  options.decision_shift = 0;
  options.tau = 0.5;
  options.truncate_at = truncate_at;
  return relax(z_GT * 0.5, at::zeros_like(z_GT), options, {0, z_GT.size(1)});
}

TEST(Decisions, AreTheLogitsThemselvesWithoutShift) {
  EXPECT_TRUE(is_bit_equal(decisions_GT(numbered_logits(2, 9), 0, {0, 4, 9}), numbered_logits(2, 9).clone()));
}

TEST(Decisions, AreReadOneTokenLaterInsideEachDocument) {
  const at::Tensor dec_GT = decisions_GT(numbered_logits(2, 9), 1, {0, 4, 5, 9});
  for (int64_t g = 0; g < 2; ++g) {
    for (int64_t t = 0; t < 9; ++t) {
      const double value = dec_GT[g][t].item<double>();
      if (t == 3 || t == 4 || t == 8) {  // the last tokens of the three documents
        EXPECT_LT(value, -1e20) << t;
      } else {
        EXPECT_EQ(value, static_cast<double>(100 * g + t + 2)) << t;
      }
    }
  }
}

TEST(Relaxation, IsTheDefinitionBetweenTheTruncations) {
  EvictionOptions options;
  options.decision_shift = 1;
  options.tau = 0.1;
  const at::Tensor logit_GT = 0.3 * seeded_normal({3, 40}, 1), noise_GT = 0.3 * seeded_normal({3, 40}, 2);
  const Relaxation relaxation = relax(logit_GT, noise_GT, options, {0, 40});
  const at::Tensor z_GT = (logit_GT + noise_GT) / 0.1;
  const at::Tensor alpha_GT = 1.0 / (1.0 + at::exp(-z_GT));
  EXPECT_TRUE(is_near(relaxation.token_alpha_GT, alpha_GT, 1e-14));
  EXPECT_TRUE(is_near(relaxation.alpha_GT.slice(1, 0, 39), alpha_GT.slice(1, 1), 1e-14));
  EXPECT_TRUE(is_near(relaxation.bias_GT.slice(1, 0, 39), at::log(1.0 - alpha_GT).slice(1, 1), 1e-9));
  // The last token's decision is undefined: never evicted.
  EXPECT_TRUE(is_near(relaxation.alpha_GT.select(1, 39), at::zeros({3}), 0.0));
  EXPECT_TRUE(is_near(relaxation.bias_GT.select(1, 39), at::zeros({3}), 0.0));
}

TEST(Relaxation, TruncatesExactlyAtBothEnds) {
  const double infinity = std::numeric_limits<double>::infinity();
  const at::Tensor z_GT =
      at::tensor({-1e30, -17.0, std::nextafter(-17.0, 0.0), std::nextafter(24.0, 0.0), 24.0, 1e30}, at::kDouble)
          .unsqueeze(0);
  const at::Tensor bias_T = relaxed_at(z_GT, 24.0).bias_GT[0];
  EXPECT_EQ(bias_T[0].item<double>(), 0.0);
  EXPECT_EQ(bias_T[1].item<double>(), 0.0);
  EXPECT_NEAR(bias_T[2].item<double>(), -std::log1p(std::exp(-17.0)), 1e-15);
  EXPECT_LT(bias_T[2].item<double>(), 0.0);
  EXPECT_NEAR(bias_T[3].item<double>(), -24.0, 1e-9);
  EXPECT_EQ(bias_T[4].item<double>(), kGoneBias);
  EXPECT_EQ(bias_T[5].item<double>(), kGoneBias);
  EXPECT_NEAR(relaxed_at(z_GT, infinity).bias_GT[0][4].item<double>(), -24.0, 1e-9);
}

TEST(Relaxation, SendsNoGradientFromTruncatedKeys) {
  const at::Tensor z_GT = at::tensor({-20.0, -3.0, 3.0, 30.0}, at::kDouble).unsqueeze(0).set_requires_grad(true);
  const at::Tensor gradient_GT =
      torch::autograd::grad({relaxed_at(z_GT, 24.0).bias_GT}, {z_GT}, {at::ones({1, 4}, at::kDouble)})[0];
  const at::Tensor expected_GT = -at::sigmoid(z_GT.detach());
  EXPECT_EQ(gradient_GT[0][0].item<double>(), 0.0);
  EXPECT_EQ(gradient_GT[0][3].item<double>(), 0.0);
  EXPECT_TRUE(is_near(gradient_GT.slice(1, 1, 3), expected_GT.slice(1, 1, 3), 1e-12));
}

TEST(Relaxation, HasTheGradientOfItsFiniteDifferences) {
  EvictionOptions options;
  options.decision_shift = 1;
  options.tau = 0.4;
  const DocumentOffsets documents{0, 5, 12};
  const at::Tensor noise_GT = seeded_normal({2, 12}, 3);
  const at::Tensor weight_GT = seeded_normal({2, 12}, 4), token_weight_GT = seeded_normal({2, 12}, 5),
                   bias_weight_GT = seeded_normal({2, 12}, 6);
  const auto objective = [&](const at::Tensor& logit_GT) {
    const Relaxation r = relax(logit_GT, noise_GT, options, documents);
    return at::sum(r.alpha_GT * weight_GT + r.token_alpha_GT * token_weight_GT + r.bias_GT * bias_weight_GT);
  };
  const at::Tensor logit_GT = seeded_normal({2, 12}, 7);
  const at::Tensor leaf_GT = logit_GT.clone().set_requires_grad(true);
  const at::Tensor gradient_GT = torch::autograd::grad({objective(leaf_GT)}, {leaf_GT})[0];
  at::Tensor expected_GT = at::zeros_like(logit_GT);
  constexpr double kStep = 1e-5;
  for (int64_t g = 0; g < 2; ++g) {
    for (int64_t t = 0; t < 12; ++t) {
      const auto moved = [&](double by) {
        at::Tensor copy_GT = logit_GT.clone();
        copy_GT[g][t] += by;
        return objective(copy_GT).item<double>();
      };
      expected_GT[g][t] = (moved(kStep) - moved(-kStep)) / (2.0 * kStep);
    }
  }
  EXPECT_TRUE(is_near(gradient_GT, expected_GT, 1e-7));
}

TEST(GoneBias, VanishesExactlyAndLeavesNoNaN) {
  for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    const at::Tensor score = at::tensor({5.0, 40.0 + kGoneBias, -3.0}, at::kDouble).to(dtype);
    EXPECT_EQ(at::softmax(score, 0)[1].item<double>(), 0.0);
    const at::Tensor all_gone = at::full({3}, kGoneBias, dtype);
    EXPECT_TRUE(at::isfinite(at::logsumexp(all_gone.to(at::kFloat), {0})).item<bool>());
    EXPECT_TRUE(at::isfinite(all_gone * 1024.0).all().item<bool>());
  }
}

TEST(CountedKeys, AreThoseWithAFarQueryInTheirDocument) {
  for (int64_t window : {int64_t{0}, int64_t{1}, int64_t{3}, int64_t{19}, int64_t{100}}) {
    const DocumentOffsets documents{0, 1, 5, 9, 20};
    const at::Tensor counted_T = counted_keys_T(20, window, documents);
    int64_t total = 0;
    for (size_t j = 0; j + 1 < documents.size(); ++j) {
      for (int64_t k = documents[j]; k < documents[j + 1]; ++k) {
        bool has_far_query = false;
        for (int64_t q = k; q < documents[j + 1]; ++q) has_far_query = has_far_query || q - k > window;
        EXPECT_EQ(counted_T[k].item<double>(), has_far_query ? 1.0 : 0.0) << "key " << k << " window " << window;
        total += has_far_query ? 1 : 0;
      }
    }
    EXPECT_EQ(num_counted_keys(window, documents), total);
  }
}

}  // namespace
}  // namespace dms
