#include "tests/support/tensor_comparison.h"

#include <gtest/gtest.h>

#include <limits>

namespace dms {
namespace {

at::Tensor negatives() { return -at::arange(1, 101, at::kDouble); }

at::Tensor with(at::Tensor tensor, int64_t index, double value) {
  tensor[index] = value;
  return tensor;
}

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(IsNear, AcceptsErrorsUpToTheToleranceAndOtherDtypes) {
  EXPECT_TRUE(is_near(negatives() * (1.0 + 9e-5), negatives(), 1e-4));
  EXPECT_TRUE(is_near(negatives().to(at::kFloat), negatives(), 0.0));
  EXPECT_TRUE(is_near(at::zeros({3}), at::zeros({3}), 0.0));
}

TEST(IsNear, RejectsAWrongSign) { EXPECT_FALSE(is_near(-negatives(), negatives(), 1.0)); }

TEST(IsNear, RejectsASmallErrorAmongNegatives) {
  EXPECT_FALSE(is_near(with(negatives(), 99, -100.02), negatives(), 1e-4));
  EXPECT_FALSE(is_near(negatives() * (1.0 + 1.1e-4), negatives(), 1e-4));
}

TEST(IsNear, RejectsAWrongLastElement) { EXPECT_FALSE(is_near(with(negatives(), 99, 0.0), negatives(), 0.5)); }

TEST(IsNear, RejectsValuesThatAreNotFiniteOnEitherSide) {
  for (double value : {kNaN, kInfinity, -kInfinity}) {
    EXPECT_FALSE(is_near(with(negatives(), 50, value), negatives(), 1e9));
    EXPECT_FALSE(is_near(negatives(), with(negatives(), 50, value), 1e9));
    EXPECT_FALSE(is_near(with(negatives(), 50, value), with(negatives(), 50, value), 1e9));
  }
}

TEST(IsNear, RejectsNonzeroValuesAgainstAReferenceOfZeros) {
  EXPECT_FALSE(is_near(with(at::zeros({3}, at::kDouble), 2, 1e-300), at::zeros({3}), 1e9));
}

TEST(BothComparisons, RefuseToCompareNothing) {
  EXPECT_FALSE(is_near(at::empty({0}), at::empty({0}), 1.0));
  EXPECT_FALSE(is_bit_equal(at::empty({4, 0}), at::empty({4, 0})));
  EXPECT_FALSE(is_near(at::Tensor(), at::Tensor(), 1.0));
  EXPECT_FALSE(is_bit_equal(at::Tensor(), at::Tensor()));
}

TEST(BothComparisons, RefuseAliasedArguments) {
  const at::Tensor x = negatives();
  EXPECT_FALSE(is_near(x, x, 1.0));
  EXPECT_FALSE(is_near(x.slice(0, 0, 50), x.slice(0, 50), 1e9));
  EXPECT_FALSE(is_bit_equal(x, x.view({100})));
}

TEST(BothComparisons, RefuseShapesThatWouldBroadcast) {
  EXPECT_FALSE(is_near(at::ones({3, 1}), at::ones({3, 3}), 1.0));
  EXPECT_FALSE(is_bit_equal(at::ones({1}), at::ones({1, 1})));
}

TEST(IsBitEqual, SeesTheLastBitOfTheLastElementAndTheSignOfZero) {
  const double next = std::nextafter(-100.0, 0.0);
  EXPECT_TRUE(is_bit_equal(negatives(), negatives()));
  EXPECT_FALSE(is_bit_equal(with(negatives(), 99, next), negatives()));
  EXPECT_FALSE(is_bit_equal(-negatives(), negatives()));
  EXPECT_FALSE(is_bit_equal(at::full({2}, -0.0), at::zeros({2})));
  EXPECT_FALSE(is_bit_equal(negatives().to(at::kFloat), negatives()));
  EXPECT_FALSE(is_bit_equal(with(negatives(), 3, kNaN), negatives()));
}

TEST(SeededNormal, IsAFunctionOfTheSeed) {
  EXPECT_TRUE(is_bit_equal(seeded_normal({50}, 1), seeded_normal({50}, 1)));
  EXPECT_FALSE(is_near(seeded_normal({50}, 2), seeded_normal({50}, 1), 0.1));
}

}  // namespace
}  // namespace dms
