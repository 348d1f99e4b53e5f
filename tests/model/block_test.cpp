#include "model/block.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

// The second half of a layer, of more rows than the MLP takes at a time.
class FinishLayerTest : public ::testing::Test {
 protected:
  static constexpr int64_t kRows = 2 * kMlpRows + 3, kHidden = 6, kInner = 10, kHeads = 2, kHeadDim = 4;

  FinishLayerTest() {
    a_.num_heads = kHeads;
    a_.head_dim = kHeadDim;
    a_.rms_norm_eps = 1e-5;
    w_.o_proj = random({kHidden, kHeads * kHeadDim});
    w_.post_norm = random({kHidden});
    w_.gate_proj = random({kInner, kHidden});
    w_.up_proj = random({kInner, kHidden});
    w_.down_proj = random({kHidden, kInner});
    x_TD_ = random({kRows, kHidden});
    attention_BHTd_ = random({1, kHeads, kRows, kHeadDim});
    dout_TD_ = random({kRows, kHidden});
  }

  at::Tensor random(at::IntArrayRef shape) { return seeded_normal(shape, ++seed_); }

  // The formula, all rows at once.
  at::Tensor expected(const at::Tensor& x_TD, const at::Tensor& attention_BHTd) const {
    const at::Tensor attention_TF = attention_BHTd.squeeze(0).transpose(0, 1).flatten(1);
    const at::Tensor y_TD = x_TD + at::matmul(attention_TF, w_.o_proj.t());
    const at::Tensor normed_TD = rms_norm(y_TD, w_.post_norm, a_.rms_norm_eps);
    const at::Tensor inner_TI =
        at::silu(at::matmul(normed_TD, w_.gate_proj.t())) * at::matmul(normed_TD, w_.up_proj.t());
    return y_TD + at::matmul(inner_TI, w_.down_proj.t());
  }

  uint64_t seed_ = 0;
  Architecture a_;
  LayerWeights w_;
  at::Tensor x_TD_, attention_BHTd_, dout_TD_;
};

constexpr double kFloat32Norm = 1e-6;  // rms_norm's statistics are float32

TEST_F(FinishLayerTest, IsTheFormulaWhateverIsKept) {
  const at::Tensor formula_TD = expected(x_TD_, attention_BHTd_);
  const at::Tensor plain_TD = finish_layer(a_, w_, x_TD_, attention_BHTd_);
  EXPECT_TRUE(is_near(plain_TD, formula_TD, kFloat32Norm));
  for (const KeptOfMlp kept : {KeptOfMlp::inner_projections, KeptOfMlp::nothing}) {
    FinishState state;
    EXPECT_TRUE(is_bit_equal(finish_layer(a_, w_, x_TD_, attention_BHTd_, kept, state), plain_TD));
    EXPECT_TRUE(is_bit_equal(state.y_TD, add_attention(a_, w_, x_TD_, attention_BHTd_)));
    EXPECT_EQ(state.mlp.size(), kept == KeptOfMlp::nothing ? 0U : 3U);
  }
}

TEST_F(FinishLayerTest, ItsBackwardPassIsAutogradsWhateverWasKept) {
  at::Tensor x_TD = x_TD_.clone().requires_grad_(), attention_BHTd = attention_BHTd_.clone().requires_grad_();
  const auto formula = torch::autograd::grad({expected(x_TD, attention_BHTd)}, {x_TD, attention_BHTd}, {dout_TD_});
  FinishState kept, dropped;
  finish_layer(a_, w_, x_TD_, attention_BHTd_, KeptOfMlp::inner_projections, kept);
  finish_layer(a_, w_, x_TD_, attention_BHTd_, KeptOfMlp::nothing, dropped);
  const FinishGradients of_kept = finish_layer_backward(a_, w_, kept, dout_TD_);
  const FinishGradients of_dropped = finish_layer_backward(a_, w_, dropped, dout_TD_);
  EXPECT_TRUE(is_near(of_kept.dx_TD, formula[0], kFloat32Norm));
  EXPECT_TRUE(is_near(of_kept.dattention_BHTd, formula[1], kFloat32Norm));
  EXPECT_TRUE(is_bit_equal(of_kept.dx_TD, of_dropped.dx_TD));
  EXPECT_TRUE(is_bit_equal(of_kept.dattention_BHTd, of_dropped.dattention_BHTd));
}

TEST_F(FinishLayerTest, OfNoRowsIsNoRows) {
  FinishState state;
  const at::Tensor none_TD = x_TD_.slice(0, 0, 0), none_BHTd = attention_BHTd_.slice(2, 0, 0);
  EXPECT_EQ(finish_layer(a_, w_, none_TD, none_BHTd, KeptOfMlp::nothing, state).size(0), 0);
  EXPECT_EQ(finish_layer_backward(a_, w_, state, none_TD).dx_TD.size(0), 0);
}

}  // namespace
}  // namespace dms
