#include "trainer/importance.h"

#include <gtest/gtest.h>

#include <cmath>

#include "model/attention.h"
#include "model/attention_reference.h"
#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

struct Case {
  Architecture a;
  LayerWeights weights;
  AttentionInputs in;
  at::Tensor x_TD;

  Case(int64_t num_tokens, int64_t G, int64_t R) {
    a.num_heads = G * R;
    a.num_kv_heads = G;
    a.head_dim = 8;
    a.hidden_size = 24;
    weights.o_proj = seeded_normal({24, G * R * 8}, 1).to(at::kFloat);
    in = {seeded_normal({1, G * R, num_tokens, 8}, 2).to(at::kFloat),
          seeded_normal({1, G, num_tokens, 8}, 3).to(at::kFloat),
          seeded_normal({1, G, num_tokens, 8}, 4).to(at::kFloat)};
    x_TD = 3.0F * seeded_normal({num_tokens, 24}, 5).to(at::kFloat);
  }
};

// The header's formula, dense.
at::Tensor dense_importance_GT(const Case& c, int64_t window, const DocumentOffsets& documents) {
  const int64_t num_tokens = c.x_TD.size(0), R = c.a.group_size();
  const at::Tensor q = c.in.q_BHTd[0].to(at::kDouble), k = c.in.k_BGTd[0].to(at::kDouble).repeat_interleave(R, 0),
                   v = c.in.v_BGTd[0].to(at::kDouble).repeat_interleave(R, 0);
  const at::Tensor visible = dense_causal_visibility(num_tokens, documents);
  const at::Tensor score = at::matmul(q, k.transpose(1, 2)) / std::sqrt(8.0);
  const at::Tensor p = at::softmax(score.masked_fill(visible.logical_not(), -1e300), -1);
  const at::Tensor o = at::matmul(p, v);
  const at::Tensor w_HdD = c.weights.o_proj.to(at::kDouble).view({24, c.a.num_heads, 8}).permute({1, 2, 0});
  const at::Tensor moved = at::matmul(v.unsqueeze(1) - o.unsqueeze(2), w_HdD.unsqueeze(1));  // [H, Q, K, D]
  const at::Tensor x_norm = at::linalg_norm(c.x_TD.to(at::kDouble), c10::nullopt, at::IntArrayRef{1});
  const at::Tensor e = p / (1.0 - p).clamp_min(0.05) * at::sqrt(at::sum(moved * moved, -1)) / x_norm.unsqueeze(1);
  const at::Tensor position = at::arange(num_tokens);
  const at::Tensor far = at::logical_and(visible, (position.unsqueeze(1) - position) > window).to(at::kDouble);
  const at::Tensor mean = at::sum(e * e * far, 1) / at::sum(far, 0).clamp_min(1.0);
  return at::sum(mean.view({c.a.num_kv_heads, R, num_tokens}), 1);
}

void expect_dense(const Case& c, int64_t window, const DocumentOffsets& documents, double tolerance = 1e-5) {
  const FlashOutput attention = causal_attention(c.in.q_BHTd, c.in.k_BGTd, c.in.v_BGTd, documents);
  const at::Tensor actual_GT =
      key_importance_GT(c.a, c.weights, c.in, attention.out_BHTd, attention.lse_BHT, c.x_TD, window, documents);
  const at::Tensor expected_GT = dense_importance_GT(c, window, documents);
  EXPECT_TRUE(is_near(actual_GT, expected_GT, tolerance));
  // Small values matter as well: the fit works on their logarithm.
  const at::Tensor counted = expected_GT > 1e-6;
  EXPECT_TRUE(is_near(at::log(actual_GT.masked_select(counted)), at::log(expected_GT.masked_select(counted)), 1e-3));
  EXPECT_TRUE(is_near(actual_GT.masked_select(expected_GT == 0.0),
                      at::zeros({(expected_GT == 0.0).sum().item<int64_t>()}), 0.0));
}

TEST(KeyImportance, IsTheDenseDefinitionAroundEveryBlock) {
  for (int64_t num_tokens : {20, 137, 145, 146, 300}) {  // the far queries fill one block at 145
    SCOPED_TRACE(num_tokens);
    expect_dense(Case(num_tokens, 2, 2), 16, {0, num_tokens});
  }
}

TEST(KeyImportance, HoldsForEveryWindowAndGroup) {
  for (int64_t window : {0, 1, 5, 150, 198}) expect_dense(Case(200, 2, 1), window, {0, 200});
  for (int64_t R : {1, 3, 4}) expect_dense(Case(150, 2, R), 9, {0, 150});
}

TEST(KeyImportance, RestartsAtEachDocument) {
  expect_dense(Case(220, 2, 3), 7, {0, 1, 8, 16, 25, 220});
  expect_dense(Case(60, 1, 2), 0, {0, 1, 2, 60});
}

// With p near 1 the label is what the cap makes of it; o_q is then nearly v_k, so their difference loses digits.
TEST(KeyImportance, IsCappedForAKeyThatTakesNearlyAllAttention) {
  Case c(120, 2, 2);
  c.in.q_BHTd.select(3, 0).fill_(std::sqrt(8.0F));
  c.in.k_BGTd.select(2, 0).select(2, 0).fill_(11.0F);
  expect_dense(c, 16, {0, 120}, 2e-3);
}

}  // namespace
}  // namespace dms
