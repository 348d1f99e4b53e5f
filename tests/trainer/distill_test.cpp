#include "trainer/distill.h"

#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <numeric>
#include <vector>

#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

constexpr int64_t kHidden = 16, kVocab = 50;
constexpr double kEps = 1e-5;

// A model that is only a head.
class HeadSource : public WeightSource {
 public:
  HeadSource(const HeadWeights& head, int64_t slice_rows) : head_(head), slice_rows_(slice_rows) {
    architecture_.vocab_size = head.head_VD.size(0);
    architecture_.hidden_size = head.head_VD.size(1);
    architecture_.rms_norm_eps = head.rms_norm_eps;
  }
  const Architecture& architecture() const override { return architecture_; }
  at::ScalarType dtype() const override { return at::kFloat; }
  LayerWeights layer(int64_t) override { return {}; }
  at::Tensor embedding() override { return head_.head_VD; }
  at::Tensor final_norm() override { return head_.final_norm_D; }
  at::Tensor head() override { return head_.head_VD; }
  int64_t num_vocabulary_slices() const override { return (architecture_.vocab_size + slice_rows_ - 1) / slice_rows_; }
  VocabularySlice head_slice(int64_t i) override {
    const int64_t begin = i * slice_rows_, end = std::min(begin + slice_rows_, architecture_.vocab_size);
    return {begin, head_.head_VD.slice(0, begin, end).clone()};
  }

 private:
  const HeadWeights head_;
  const int64_t slice_rows_;
  Architecture architecture_;
};

struct Case {
  HeadWeights head;
  at::Tensor teacher_TD, student_TD;

  explicit Case(int64_t num_tokens, int64_t vocab_size = kVocab)
      : head{(1.0 + 0.1 * seeded_normal({kHidden}, 1)).to(at::kFloat),
             seeded_normal({vocab_size, kHidden}, 2).to(at::kFloat), kEps},
        teacher_TD(seeded_normal({num_tokens, kHidden}, 3).to(at::kFloat)),
        student_TD((teacher_TD + 0.3 * seeded_normal({num_tokens, kHidden}, 4)).to(at::kFloat)) {}
};

DistillationResult distill_one(const Case& c, const std::vector<uint8_t>& loss_mask, const DistillationOptions& options,
                               double gradient_scale) {
  HeadSource whole(c.head, c.head.head_VD.size(0));
  return distill(whole, {{c.teacher_TD, c.student_TD, loss_mask}}, options, gradient_scale).front();
}

at::Tensor dense_log_p(const HeadWeights& head, const at::Tensor& x_TD, double temperature) {
  const at::Tensor x = x_TD.to(at::kDouble);
  const at::Tensor normed = x / at::sqrt(at::mean(x * x, {-1}, true) + kEps) * head.final_norm_D.to(at::kDouble);
  return at::log_softmax(at::matmul(normed, head.head_VD.to(at::kDouble).t()) / temperature, -1);
}

struct Expected {
  double kl_sum;
  at::Tensor gradient_TD;
};

Expected dense_distill(const Case& c, const std::vector<uint8_t>& loss_mask, const DistillationOptions& options,
                       double gradient_scale) {
  const at::AutoGradMode with_grad(true);
  const at::Tensor student = c.student_TD.to(at::kDouble).set_requires_grad(true);
  const at::Tensor log_t = dense_log_p(c.head, c.teacher_TD, options.temperature);
  const at::Tensor log_s = dense_log_p(c.head, student, options.temperature);
  const at::Tensor kl_T = options.kl == KlDirection::forward ? at::sum(at::exp(log_t) * (log_t - log_s), -1)
                                                             : at::sum(at::exp(log_s) * (log_s - log_t), -1);
  const at::Tensor mask_T = at::tensor(at::ArrayRef<uint8_t>(loss_mask)).to(at::kDouble);
  const at::Tensor sum = at::sum(kl_T * mask_T) * options.temperature * options.temperature;
  return {sum.item<double>(), torch::autograd::grad({sum * gradient_scale}, {student})[0]};
}

void expect_dense(const Case& c, const std::vector<uint8_t>& loss_mask, const DistillationOptions& options) {
  constexpr double kScale = 1.0 / 37.0;
  const DistillationResult actual = distill_one(c, loss_mask, options, kScale);
  const Expected expected = dense_distill(c, loss_mask, options, kScale);
  EXPECT_NEAR(actual.kl_sum, expected.kl_sum, 1e-6 * expected.kl_sum);
  EXPECT_TRUE(is_near(actual.dstudent_TD, expected.gradient_TD, 2e-6));
}

std::vector<uint8_t> all_counted(int64_t num_tokens) {
  return std::vector<uint8_t>(static_cast<size_t>(num_tokens), 1);
}

TEST(Distill, IsTheDenseKlAndGradientAroundEveryChunkBoundary) {
  for (int64_t num_tokens : {1, 127, 128, 129, 300}) {
    SCOPED_TRACE(num_tokens);
    for (KlDirection kl : {KlDirection::forward, KlDirection::reverse}) {
      expect_dense(Case(num_tokens), all_counted(num_tokens), {kl, 1.0});
    }
  }
}

TEST(Distill, ScalesByTheTemperatureSquared) {
  for (double temperature : {0.5, 2.0, 5.0}) {
    for (KlDirection kl : {KlDirection::forward, KlDirection::reverse}) {
      expect_dense(Case(40), all_counted(40), {kl, temperature});
    }
  }
}

TEST(Distill, DirectionsDiffer) {
  const Case c(40);
  const auto kl = [&](KlDirection direction) { return distill_one(c, all_counted(40), {direction, 1.0}, 1.0).kl_sum; };
  EXPECT_GT(std::abs(kl(KlDirection::forward) - kl(KlDirection::reverse)), 1e-2 * kl(KlDirection::forward));
}

TEST(Distill, CountsOnlyTheLossMask) {
  const Case c(260);
  std::vector<uint8_t> mask(260, 0);
  for (size_t t = 1; t < 260; t += 2) mask[t] = 1;  // 130 counted: a chunk and two
  expect_dense(c, mask, {});
  const at::Tensor gradient = distill_one(c, mask, {}, 1.0).dstudent_TD;
  for (int64_t t = 0; t < 260; ++t) EXPECT_EQ(gradient[t].abs().max().item<double>() > 0.0, t % 2 == 1) << t;
}

TEST(Distill, WithNothingCountedIsZero) {
  const Case c(5);
  const DistillationResult result = distill_one(c, std::vector<uint8_t>(5, 0), {}, 1.0);
  EXPECT_EQ(result.kl_sum, 0.0);
  EXPECT_TRUE(is_bit_equal(result.dstudent_TD, at::zeros({5, kHidden})));
}

TEST(Distill, AHeadInSlicesGivesTheBitsOfTheWholeOne) {
  constexpr int64_t kLargeVocab = 3 * kVocabularyTile + 57;
  std::vector<DistillationSample> samples;
  for (int64_t num_tokens : {300, 1, 40}) {
    const Case c(num_tokens);
    std::vector<uint8_t> mask = all_counted(num_tokens);
    if (num_tokens == 1) mask[0] = 0;
    samples.push_back({c.teacher_TD, c.student_TD, mask});
  }
  HeadWeights head = Case(1).head;
  head.head_VD = seeded_normal({kLargeVocab, kHidden}, 5).to(at::kFloat);
  HeadSource whole(head, kLargeVocab);
  for (const KlDirection kl : {KlDirection::forward, KlDirection::reverse}) {
    const DistillationOptions options{kl, 2.0};
    const std::vector<DistillationResult> expected = distill(whole, samples, options, 0.1);
    for (const int64_t slice_rows : {kVocabularyTile, 2 * kVocabularyTile}) {
      HeadSource slices(head, slice_rows);
      const std::vector<DistillationResult> actual = distill(slices, samples, options, 0.1);
      const std::vector<double> sums = kl_sums(slices, samples, options);
      for (size_t s = 0; s < samples.size(); ++s) {
        SCOPED_TRACE(s);
        EXPECT_EQ(actual[s].kl_sum, expected[s].kl_sum);
        EXPECT_EQ(sums[s], expected[s].kl_sum);
        EXPECT_TRUE(is_bit_equal(actual[s].dstudent_TD, expected[s].dstudent_TD));
      }
    }
  }
}

TEST(Distill, RefusesAMaskOfAnotherLength) {
  const Case c(5);
  EXPECT_THROW(distill_one(c, all_counted(4), {}, 1.0), c10::Error);
}

TEST(LogitTiles, FindsTheLargestLogitAndTheirSumOverAllTiles) {
  const Case c(40, 2500);
  LogitTiles tiles(c.teacher_TD, c.student_TD, KlDirection::forward, 1.0);
  LogitBuffers buffers(64, true);
  tiles.add({0, c.head.head_VD}, buffers);
  tiles.kl();
  const at::Tensor logits_MV =
      at::matmul(at::cat({c.teacher_TD, c.student_TD}).to(at::kDouble), c.head.head_VD.to(at::kDouble).t());
  EXPECT_TRUE(at::equal(tiles.top1_M(buffers, 2500), logits_MV.argmax(-1)));
  EXPECT_TRUE(is_near(tiles.lse_M(), at::logsumexp(logits_MV, {-1}), 1e-6));
}

TEST(CompareHeads, IsTheDenseComparison) {
  // The larger vocabulary takes three tiles, the last one short.
  for (const auto& [num_tokens, vocab_size] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 50}, {2, 50}, {129, 50}, {257, 2500}, {9, 3072}, {3, 1024}}) {
    SCOPED_TRACE(::testing::Message() << num_tokens << " tokens, vocabulary " << vocab_size);
    const Case c(num_tokens, vocab_size);
    std::vector<int32_t> tokens;
    for (int64_t t = 0; t < num_tokens; ++t) tokens.push_back(static_cast<int32_t>((911 * t + 3) % vocab_size));
    const HeadComparison actual = compare_heads(c.head, c.teacher_TD, c.student_TD, tokens);
    const at::Tensor log_t = dense_log_p(c.head, c.teacher_TD, 1.0), log_s = dense_log_p(c.head, c.student_TD, 1.0);
    EXPECT_TRUE(is_near(actual.kl_T, at::sum(at::exp(log_t) * (log_t - log_s), -1), 4e-6));
    EXPECT_TRUE(is_near(actual.same_top1_T, (log_t.argmax(-1) == log_s.argmax(-1)).to(at::kDouble), 0.0));
    ASSERT_EQ(actual.teacher_nll_T.numel(), num_tokens - 1);
    if (num_tokens == 1) continue;
    at::Tensor nll_t = at::zeros({num_tokens - 1}, at::kDouble), nll_s = at::zeros_like(nll_t);
    for (int64_t t = 0; t + 1 < num_tokens; ++t) {
      nll_t[t] = -log_t[t][tokens[static_cast<size_t>(t) + 1]];
      nll_s[t] = -log_s[t][tokens[static_cast<size_t>(t) + 1]];
    }
    EXPECT_TRUE(is_near(actual.teacher_nll_T, nll_t, 1e-6));
    EXPECT_TRUE(is_near(actual.student_nll_T, nll_s, 1e-6));
  }
}

}  // namespace
}  // namespace dms
