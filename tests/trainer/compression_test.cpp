#include "trainer/compression.h"

#include <gtest/gtest.h>

namespace dms {
namespace {

TEST(CompressionSchedule, RisesLinearlyFromStepZeroAndStaysThere) {
  CompressionOptions options;
  options.initial = 2.0;
  options.final = 8.0;
  options.ramp_steps = 12;
  EXPECT_EQ(compression_ratio_at(options, 0), 2.0);
  EXPECT_EQ(compression_ratio_at(options, 1), 2.5);
  EXPECT_EQ(compression_ratio_at(options, 6), 5.0);
  EXPECT_EQ(compression_ratio_at(options, 12), 8.0);
  EXPECT_EQ(compression_ratio_at(options, 1000000), 8.0);
}

TEST(CompressionSchedule, WithoutRampIsAtItsEndFromTheStart) {
  CompressionOptions options;
  options.ramp_steps = 0;
  EXPECT_EQ(compression_ratio_at(options, 0), options.final);
}

TEST(CompressionTarget, IsTheShareOfKeysToEvict) {
  EXPECT_EQ(target_fraction(1.0), 0.0);
  EXPECT_EQ(target_fraction(2.0), 0.5);
  EXPECT_EQ(target_fraction(8.0), 0.875);
}

TEST(CompressionLoss, PushesOnlyBelowTheTarget) {
  CompressionOptions options;
  options.loss_weight = 3.0;
  const CompressionLoss below = compression_loss(options, 0.875, 0.375);
  EXPECT_EQ(below.loss, 1.5);
  EXPECT_EQ(below.gradient, -3.0);
  for (double fraction : {0.875, 0.9, 1.0}) {
    const CompressionLoss reached = compression_loss(options, 0.875, fraction);
    EXPECT_EQ(reached.loss, 0.0);
    EXPECT_EQ(reached.gradient, 0.0);
  }
}

}  // namespace
}  // namespace dms
