#include "model/rope.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

Architecture with_rope(int64_t head_dim, RopeScaling rope) {
  Architecture a;
  a.head_dim = head_dim;
  a.rope = rope;
  return a;
}

// The scalings as their papers state them, in float64.
std::vector<double> frequencies_of(int64_t head_dim, const RopeScaling& r) {
  std::vector<double> frequencies;
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    const double f = std::pow(r.theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    const double turns = static_cast<double>(r.original_max_position) * f / (2.0 * std::numbers::pi);
    if (r.type == RopeType::linear) {
      frequencies.push_back(f / r.factor);
    } else if (r.type == RopeType::yarn) {
      // gamma(turns) of Peng et al. 2023, eq. 20, over the channel index instead of the number of turns.
      const auto channel = [&](double n) {
        return static_cast<double>(head_dim) *
               std::log(static_cast<double>(r.original_max_position) / (n * 2.0 * std::numbers::pi)) /
               (2.0 * std::log(r.theta));
      };
      const double fast = channel(r.beta_fast), slow = channel(r.beta_slow);
      const double first = std::max(0.0, r.truncate ? std::floor(fast) : fast);
      const double last = std::min(static_cast<double>(head_dim) - 1.0, r.truncate ? std::ceil(slow) : slow);
      const double slowed = std::clamp((static_cast<double>(i) - first) / (last - first), 0.0, 1.0);
      frequencies.push_back(f * (1.0 - slowed) + f / r.factor * slowed);
    } else if (r.type == RopeType::plain || turns > r.high_freq_factor) {
      frequencies.push_back(f);
    } else if (turns < r.low_freq_factor) {
      frequencies.push_back(f / r.factor);
    } else {
      const double smooth = (turns - r.low_freq_factor) / (r.high_freq_factor - r.low_freq_factor);
      frequencies.push_back((1.0 - smooth) * f / r.factor + smooth * f);
    }
  }
  return frequencies;
}

void expect_tables_of(int64_t head_dim, const RopeScaling& rope, int64_t num_positions) {
  const RopeTables tables =
      make_rope_tables(with_rope(head_dim, rope), num_positions, at::TensorOptions().dtype(at::kFloat));
  const at::Tensor frequency_h = at::tensor(frequencies_of(head_dim, rope), at::kDouble);
  const at::Tensor angle_Th = at::arange(num_positions, at::kDouble).unsqueeze(1) * frequency_h;
  const at::Tensor angle_Td = at::cat({angle_Th, angle_Th}, 1);
  // Angles are float32, half an ulp each way of position * frequency.
  const double tolerance = 3e-7 * static_cast<double>(num_positions);
  EXPECT_TRUE(is_near(tables.cos_Td, at::cos(angle_Td) * rope.attention_factor, tolerance));
  EXPECT_TRUE(is_near(tables.sin_Td, at::sin(angle_Td) * rope.attention_factor, tolerance));
}

TEST(Rope, HasPlainFrequencies) { expect_tables_of(64, {.theta = 1e5}, 300); }

// Llama 3.2 1B and 3.1 8B: both have frequencies in each of the three ranges.
TEST(Rope, HasTheFrequenciesOfLlama3Scaling) {
  const RopeScaling llama32{RopeType::llama3, 500000.0, 32.0, 1.0, 4.0, 8192};
  const RopeScaling llama31{RopeType::llama3, 500000.0, 8.0, 1.0, 4.0, 8192};
  expect_tables_of(64, llama32, 300);
  expect_tables_of(128, llama31, 300);
  const std::vector<double> plain = frequencies_of(64, {.theta = 500000.0}), scaled = frequencies_of(64, llama32);
  int64_t kept = 0, slowed = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    kept += scaled[i] == plain[i] ? 1 : 0;
    slowed += scaled[i] == plain[i] / 32.0 ? 1 : 0;
  }
  EXPECT_GT(kept, 0);
  EXPECT_GT(slowed, 0);
  EXPECT_LT(kept + slowed, 32);
}

TEST(Rope, HasTheFrequenciesOfLinearScaling) {
  expect_tables_of(64, {.type = RopeType::linear, .theta = 1e4, .factor = 2.5}, 300);
}

TEST(Rope, HasTheFrequenciesOfYarn) {
  RopeScaling yarn{.type = RopeType::yarn, .theta = 1e6, .factor = 4.0, .original_max_position = 32768};
  yarn.attention_factor = 1.1386;
  expect_tables_of(128, yarn, 300);
  const std::vector<double> plain = frequencies_of(128, {.theta = 1e6}), scaled = frequencies_of(128, yarn);
  int64_t kept = 0, slowed = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    kept += scaled[i] == plain[i] ? 1 : 0;
    slowed += std::abs(scaled[i] * 4.0 / plain[i] - 1.0) < 1e-12 ? 1 : 0;
  }
  EXPECT_GT(kept, 0);
  EXPECT_GT(slowed, 0);
  EXPECT_LT(kept + slowed, 64);
  yarn.truncate = false;
  yarn.beta_fast = 16.0;
  yarn.beta_slow = 2.0;
  expect_tables_of(64, yarn, 300);
  yarn.beta_fast = yarn.beta_slow = 4.0;  // no ramp: one channel to the next
  expect_tables_of(64, yarn, 300);
}

TEST(Rope, TurnsTheHalfSplitPairsAsComplexNumbers) {
  const Architecture a = with_rope(8, {.theta = 100.0});
  const RopeTables tables = make_rope_tables(a, 20, at::TensorOptions().dtype(at::kFloat));
  const at::Tensor x_TNd = seeded_normal({20, 3, 8}, 1);
  const std::vector<double> frequencies = frequencies_of(8, a.rope);
  at::Tensor expected_TNd = at::empty_like(x_TNd);
  for (int64_t t = 0; t < 20; ++t) {
    for (int64_t i = 0; i < 4; ++i) {
      const double angle = static_cast<double>(t) * frequencies[static_cast<size_t>(i)];
      const at::Tensor re = x_TNd.select(0, t).select(1, i), im = x_TNd.select(0, t).select(1, i + 4);
      expected_TNd.select(0, t).select(1, i).copy_(re * std::cos(angle) - im * std::sin(angle));
      expected_TNd.select(0, t).select(1, i + 4).copy_(re * std::sin(angle) + im * std::cos(angle));
    }
  }
  EXPECT_TRUE(is_near(apply_rope(x_TNd, tables), expected_TNd, 2e-6));
  EXPECT_TRUE(is_bit_equal(apply_rope(x_TNd.slice(0, 5, 9), tables.slice(5, 9)),
                           apply_rope(x_TNd, tables).slice(0, 5, 9).contiguous()));
}

}  // namespace
}  // namespace dms
