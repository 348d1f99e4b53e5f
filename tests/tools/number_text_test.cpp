#include "tools/number_text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace dms {
namespace {

const double kNan = std::nan("");
const double kInfinity = std::numeric_limits<double>::infinity();

TEST(NumberText, CountsHaveThousandsSeparators) {
  EXPECT_EQ(count_text(0), "0");
  EXPECT_EQ(count_text(999), "999");
  EXPECT_EQ(count_text(1000), "1,000");
  EXPECT_EQ(count_text(-98304), "-98,304");
  EXPECT_EQ(count_text(134515008), "134,515,008");
}

TEST(NumberText, SignificantDigitsFollowTheRoundedValue) {
  EXPECT_EQ(significant_text(0.0875), "0.0875");
  EXPECT_EQ(significant_text(0.09999, 2), "0.10");
  EXPECT_EQ(significant_text(9.999), "10.0");
  EXPECT_EQ(significant_text(-12.345), "-12.3");
  EXPECT_EQ(significant_text(1234.5), "1,234");
  EXPECT_EQ(significant_text(0.00002134), "2.13e-5");
  EXPECT_EQ(significant_text(0), "0");
  EXPECT_EQ(significant_text(1e300), "1.00e300");
}

TEST(NumberText, PercentHasNoTrailingZerosAndMoreDigitsWhenSmall) {
  EXPECT_EQ(percent_text(0.875), "87.5%");
  EXPECT_EQ(percent_text(1), "100%");
  EXPECT_EQ(percent_text(0.00321), "0.32%");
  EXPECT_EQ(percent_text(0.1), "10%");
  EXPECT_EQ(percent_text(-0.00001), "0%");
}

TEST(NumberText, BytesTakeTheLargestUnitBelowThem) {
  EXPECT_EQ(bytes_text(0), "0 B");
  EXPECT_EQ(bytes_text(1023), "1,023 B");
  EXPECT_EQ(bytes_text(1024), "1.00 KiB");
  EXPECT_EQ(bytes_text(1.5 * (1 << 20)), "1.50 MiB");
  EXPECT_EQ(bytes_text(1010.0 * (1 << 20)), "1,010 MiB");
  EXPECT_EQ(bytes_text(5.0 * (int64_t{1} << 30)), "5.00 GiB");
}

TEST(NumberText, DurationsSwitchToMinutesAndHours) {
  EXPECT_EQ(duration_text(0.25), "0.25 s");
  EXPECT_EQ(duration_text(8.5), "8.50 s");
  EXPECT_EQ(duration_text(60), "1 min 0 s");
  EXPECT_EQ(duration_text(843.4), "14 min 3 s");
  EXPECT_EQ(duration_text(3900), "1 h 5 min");
}

TEST(NumberText, ParametersAreCountedInMillionsAndBillions) {
  EXPECT_EQ(parameters_text(5184), "5,184");
  EXPECT_EQ(parameters_text(1'300'000), "1.30M");
  EXPECT_EQ(parameters_text(134'515'008), "134.5M");
  EXPECT_EQ(parameters_text(8'190'735'360), "8.19B");
}

TEST(NumberText, WhatIsNoNumberIsADash) {
  for (const double value : {kNan, kInfinity, -kInfinity}) {
    EXPECT_EQ(significant_text(value), "–");
    EXPECT_EQ(percent_text(value), "–");
    EXPECT_EQ(bytes_text(value), "–");
    EXPECT_EQ(duration_text(value), "–");
  }
}

}  // namespace
}  // namespace dms
