#include "trainer/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "tests/support/tensor_comparison.h"
#include "tests/support/tiny_source.h"

namespace dms {
namespace {

TEST(LearningRate, FollowsItsSchedule) {
  OptimizerOptions o;
  o.learning_rate = 0.8;
  EXPECT_EQ(learning_rate_at(o, 0, 100), 0.8);
  EXPECT_EQ(learning_rate_at(o, 99, 100), 0.8);
  o.schedule = Schedule::linear;
  EXPECT_EQ(learning_rate_at(o, 0, 100), 0.8);
  EXPECT_DOUBLE_EQ(learning_rate_at(o, 75, 100), 0.2);
  o.schedule = Schedule::cosine;
  EXPECT_EQ(learning_rate_at(o, 0, 100), 0.8);
  EXPECT_DOUBLE_EQ(learning_rate_at(o, 50, 100), 0.4);
  EXPECT_DOUBLE_EQ(learning_rate_at(o, 25, 100), 0.4 * (1.0 + std::numbers::sqrt2 / 2.0));
}

TEST(LearningRate, WarmsUpToItsPeak) {
  OptimizerOptions o;
  o.learning_rate = 0.8;
  o.warmup_steps = 4;
  EXPECT_DOUBLE_EQ(learning_rate_at(o, 0, 100), 0.2);
  EXPECT_DOUBLE_EQ(learning_rate_at(o, 2, 100), 0.6);
  EXPECT_EQ(learning_rate_at(o, 3, 100), 0.8);
  EXPECT_EQ(learning_rate_at(o, 4, 100), 0.8);
}

TEST(GlobalNorm, IsTheNormOfAllGradientsTogether) {
  EXPECT_EQ(global_norm({at::tensor({3.0F, 0.0F}), at::tensor({0.0F, -4.0F, 12.0F})}), 13.0);
}

class OptimizerTest : public ::testing::Test {
 protected:
  std::unique_ptr<Adapter> make() const {
    return make_adapter({}, {AdapterKind::linear, 0, AdapterBias::per_head}, *source_, {});
  }
  static std::vector<at::Tensor> gradients(const Adapter& adapter, uint64_t seed) {
    std::vector<at::Tensor> all;
    for (const Adapter::Parameter& p : adapter.parameters()) {
      all.push_back(seeded_normal(p.tensor.sizes(), ++seed).to(at::kFloat));
    }
    return all;
  }
  static std::vector<at::Tensor> values(const Adapter& adapter) {
    std::vector<at::Tensor> all;
    for (const Adapter::Parameter& p : adapter.parameters()) all.push_back(p.tensor.detach().clone());
    return all;
  }

  const TinySource source_;
};

TEST_F(OptimizerTest, TakesTheStepsOfAdam) {
  OptimizerOptions options;
  options.clip = 0.0;
  options.beta1 = 0.8;
  options.beta2 = 0.9;
  const auto adapter = make();
  Optimizer optimizer(*adapter, options);
  const std::vector<at::Tensor> before = values(*adapter);
  const auto g1 = gradients(*adapter, 10), g2 = gradients(*adapter, 50);
  optimizer.step(g1, global_norm(g1), 0.01);
  optimizer.step(g2, global_norm(g2), 0.003);
  const std::vector<at::Tensor> after = values(*adapter);
  for (size_t p = 0; p < before.size(); ++p) {
    const at::Tensor a = g1[p].to(at::kDouble), b = g2[p].to(at::kDouble);
    const at::Tensor m1 = 0.2 * a, v1 = 0.1 * a * a, m2 = 0.8 * m1 + 0.2 * b, v2 = 0.9 * v1 + 0.1 * b * b;
    const at::Tensor first = 0.01 * (m1 / 0.2) / (at::sqrt(v1 / 0.1) + 1e-8);
    const at::Tensor second = 0.003 * (m2 / (1.0 - 0.64)) / (at::sqrt(v2 / (1.0 - 0.81)) + 1e-8);
    EXPECT_TRUE(is_near(after[p] - before[p].to(at::kDouble), -(first + second), 2e-5));
  }
}

TEST_F(OptimizerTest, ClipsByTheGlobalNorm) {
  OptimizerOptions options;
  options.clip = 2.0;
  const auto clipped = make(), scaled = make();
  Optimizer clipping(*clipped, options);
  options.clip = 0.0;
  Optimizer plain(*scaled, options);
  auto large = gradients(*clipped, 1);
  const double norm = global_norm(large);
  ASSERT_GT(norm, 4.0);
  auto small = large;
  for (at::Tensor& gradient : small) gradient = gradient * (2.0 / norm);
  // Adam forgets a gradient's scale in one step, not over steps of different norms.
  for (const auto& [a, b] : {std::pair{large, small}, {gradients(*clipped, 9), gradients(*clipped, 9)}}) {
    clipping.step(a, global_norm(a) == norm ? norm : 1.5, 0.1);
    plain.step(b, 0.0, 0.1);
  }
  for (size_t p = 0; p < large.size(); ++p) EXPECT_TRUE(is_bit_equal(values(*clipped)[p], values(*scaled)[p]));
}

TEST_F(OptimizerTest, ContinuesFromItsStateToTheBit) {
  const auto original = make(), copy = make();
  Optimizer first(*original, {});
  EXPECT_TRUE(first.state().empty());
  for (uint64_t i = 0; i < 3; ++i) first.step(gradients(*original, 100 * i), 5.0, 0.01);
  Optimizer second(*copy, {});
  second.load_state(first.state());
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const Adapter::Parameter& p : original->parameters()) tensors.emplace_back(p.name, p.tensor.detach().clone());
  load_parameters(*copy, tensors);
  const auto saved = first.state(), loaded = second.state();
  ASSERT_EQ(saved.size(), 3 * tensors.size());
  for (size_t i = 0; i < saved.size(); ++i) {
    EXPECT_EQ(saved[i].first, loaded[i].first);
    EXPECT_TRUE(is_bit_equal(loaded[i].second, saved[i].second)) << saved[i].first;
  }
  for (uint64_t i = 3; i < 6; ++i) {
    first.step(gradients(*original, 100 * i), 5.0, 0.01);
    second.step(gradients(*copy, 100 * i), 5.0, 0.01);
  }
  for (size_t p = 0; p < tensors.size(); ++p) EXPECT_TRUE(is_bit_equal(values(*copy)[p], values(*original)[p]));
}

TEST_F(OptimizerTest, NamesWhatIsWrongWithAState) {
  const auto adapter = make();
  Optimizer optimizer(*adapter, {});
  optimizer.step(gradients(*adapter, 1), 1.0, 0.01);
  auto state = optimizer.state();
  const auto message = [&] {
    try {
      Optimizer(*adapter, {}).load_state(state);
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(message(), "");
  const std::string name = "model.layers.0.self_attn.dms_proj_alpha.weight";
  ASSERT_EQ(state[1].first, name + ".exp_avg_sq");
  state[1].second = at::zeros({1});
  EXPECT_EQ(message(), "optimizer state of '" + name + "' has the wrong shape");
  state.erase(state.begin() + 1);
  EXPECT_EQ(message(), "optimizer state '" + name + ".exp_avg_sq' is missing");
}

}  // namespace
}  // namespace dms
