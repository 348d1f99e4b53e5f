#include "trainer/ordered_sum.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

TEST(OrderedSum, AddsFromTheFirstToTheLastInFloat64) {
  // 1e16 + 1 rounds back to 1e16 in float64, so each order has its own result.
  EXPECT_EQ(ordered_sum(at::tensor({1e16, 1.0, -1e16}, at::kDouble)), 0.0);
  EXPECT_EQ(ordered_sum(at::tensor({1e16, -1e16, 1.0}, at::kDouble)), 1.0);
  // In float32 2^24 + 1 would be lost.
  EXPECT_EQ(ordered_sum(at::tensor({16777216.0F, 1.0F, 1.0F})), 16777218.0);
  EXPECT_EQ(ordered_sum_of_squares(at::tensor({3.0F, -4.0F})), 25.0);
  EXPECT_EQ(ordered_sum(at::tensor({1.0F, 2.0F, 3.0F, 4.0F}).view({2, 2}).t()), 10.0);
  EXPECT_EQ(ordered_sum(at::tensor({1.0, 0.0, 1.0}) > 0.5), 2.0);
}

TEST(OrderedSum, DoesNotDependOnTheNumberOfThreads) {
  const at::Tensor x = seeded_normal({300000}, 1).to(at::kFloat);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const double one = ordered_sum(x);
  at::set_num_threads(2);
  const double two = ordered_sum(x);
  at::set_num_threads(threads);
  EXPECT_EQ(one, two);
}

TEST(TreeSum, AddsNeighboursFirst) {
  EXPECT_EQ(tree_sum(std::vector<double>{1.0, 1e16, -1e16, 1.0}), 0.0);  // in order it would be 1
  EXPECT_EQ(tree_sum(std::vector<double>{1e16, -1e16, 1.0, 1.0, 5.0}), 7.0);
  EXPECT_EQ(tree_sum(std::vector<double>{2.5}), 2.5);
  EXPECT_THROW(tree_sum(std::vector<double>{}), c10::Error);
}

TEST(TreeSum, CombinesFromPartialSumsOfPowerOfTwoBlocksToTheSameBits) {
  std::vector<at::Tensor> samples;
  for (uint64_t i = 0; i < 16; ++i) samples.push_back(seeded_normal({1000}, i).to(at::kFloat));
  const at::Tensor whole = tree_sum(samples);
  for (size_t block : {1U, 2U, 4U, 8U}) {
    std::vector<at::Tensor> partial;
    for (size_t first = 0; first < 16; first += block) {
      const auto begin = samples.begin() + static_cast<std::ptrdiff_t>(first);
      partial.push_back(tree_sum(std::vector<at::Tensor>(begin, begin + static_cast<std::ptrdiff_t>(block))));
    }
    EXPECT_TRUE(is_bit_equal(tree_sum(partial), whole)) << "blocks of " << block;
  }
  at::Tensor in_order = samples[0].clone();
  for (size_t i = 1; i < 16; ++i) in_order += samples[i];
  EXPECT_FALSE(is_bit_equal(in_order, whole)) << "the order of summation does not show in these values";
}

}  // namespace
}  // namespace dms
