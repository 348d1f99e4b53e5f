#include "recipes/option_value.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <random>

namespace dms {
namespace {

constexpr int64_t int64_min = std::numeric_limits<int64_t>::min(), int64_max = std::numeric_limits<int64_t>::max();

TEST(OptionValue, IntegersAreDecimalAndExact) {
  const std::vector<std::pair<const char*, std::optional<int64_t>>> cases = {
      {"0", 0},
      {"-0", 0},
      {"+7", 7},
      {"1_000_000", 1'000'000},
      {"62e6", 62'000'000},
      {"1E+3", 1000},
      {"-5", -5},
      {"0e9", 0},
      {"8.0", std::nullopt},
      {"1e-3", std::nullopt},
      {"", std::nullopt},
      {"-", std::nullopt},
      {"0x10", std::nullopt},
      {"010", std::nullopt},
      {"1__0", std::nullopt},
      {"_1", std::nullopt},
      {"1_", std::nullopt},
      {"1e", std::nullopt},
      {"e3", std::nullopt},
      {"1 ", std::nullopt},
      {"--1", std::nullopt},
      {"1e999", std::nullopt},
      {"twelve", std::nullopt},
      {"9223372036854775807", int64_max},
      {"-9223372036854775808", int64_min},
  };
  for (const auto& [text, value] : cases) EXPECT_EQ(parse_integer(text), value) << text;
}

TEST(OptionValue, AnIntegerBeyondInt64IsToldFromNonsense) {
  bool overflow = false;
  EXPECT_FALSE(parse_integer("9223372036854775808", &overflow));
  EXPECT_TRUE(overflow);
  overflow = false;
  EXPECT_FALSE(parse_integer("abc", &overflow));
  EXPECT_FALSE(overflow);
  EXPECT_FALSE(parse_integer("-1e30", &overflow));
  EXPECT_TRUE(overflow);
}

TEST(OptionValue, RealsAreFinite) {
  EXPECT_EQ(parse_real("3e-5"), 3e-5);
  EXPECT_EQ(parse_real("+0.5"), 0.5);
  EXPECT_EQ(parse_real("-2"), -2.0);
  for (const char* text : {"nan", ".nan", "inf", "-.inf", "1e999", "", "0x1p3", "1,5", "1.5 ", "+-1", "1e", "abc"}) {
    EXPECT_FALSE(parse_real(text)) << text;
  }
}

TEST(OptionValue, RealsReadBackToTheBitAndLookLikeReals) {
  EXPECT_EQ(format_real(8.0), "8.0");
  EXPECT_EQ(format_real(3e-5), "3.0e-05");
  EXPECT_EQ(format_real(0.1), "0.1");
  EXPECT_EQ(format_real(-0.0), "-0.0");
  std::mt19937_64 random(1);
  for (int i = 0; i < 100'000; ++i) {
    const uint64_t bits = random();
    double value, back;
    std::memcpy(&value, &bits, sizeof value);
    if (!(value - value == 0.0)) continue;  // NaN or infinite
    const std::optional<double> parsed = parse_real(format_real(value));
    ASSERT_TRUE(parsed) << format_real(value);
    back = *parsed;
    ASSERT_EQ(std::memcmp(&value, &back, sizeof value), 0) << format_real(value);
    ASSERT_NE(format_real(value).find('.'), std::string::npos);
  }
}

TEST(OptionValue, FlagsAreTrueOrFalseOnly) {
  EXPECT_EQ(parse_flag("true"), true);
  EXPECT_EQ(parse_flag("false"), false);
  for (const char* text : {"yes", "on", "True", "1", "0", ""}) EXPECT_FALSE(parse_flag(text)) << text;
}

TEST(OptionValue, SizesHaveBinaryAndDecimalUnits) {
  EXPECT_EQ(parse_bytes_or_auto("auto"), -1);
  EXPECT_EQ(parse_bytes_or_auto("24GiB"), int64_t{24} << 30);
  EXPECT_EQ(parse_bytes_or_auto("500MB"), 500'000'000);
  EXPECT_EQ(parse_bytes_or_auto("1.5KiB"), 1536);
  EXPECT_EQ(parse_bytes_or_auto("2 kB"), 2000);
  EXPECT_EQ(parse_bytes_or_auto("3TiB"), int64_t{3} << 40);
  EXPECT_EQ(parse_bytes_or_auto("7B"), 7);
  EXPECT_EQ(parse_bytes_or_auto("1024"), 1024);
  for (const char* text : {"0", "-1", "-1GiB", "24G", "24gib", "1.5", "GiB", "", "1e10GiB", "99999999TiB", "nanGiB",
                           "1e30GB", "0.1B", "Auto", "infKiB"}) {
    EXPECT_FALSE(parse_bytes_or_auto(text)) << text;
  }
}

TEST(OptionValue, SizesReadBackExactly) {
  EXPECT_EQ(format_bytes_or_auto(-1), "auto");
  EXPECT_EQ(format_bytes_or_auto(int64_t{24} << 30), "24GiB");
  EXPECT_EQ(format_bytes_or_auto(1536), "1536");
  EXPECT_EQ(format_bytes_or_auto(3072), "3KiB");
  for (int64_t bytes : {int64_t{1}, int64_t{1023}, int64_t{1024}, int64_t{5} << 20, int64_t{500'000'000}, int64_max}) {
    EXPECT_EQ(parse_bytes_or_auto(format_bytes_or_auto(bytes)), bytes);
  }
}

TEST(OptionValue, TextIsQuotedWhereYamlWouldSeeSomethingElse) {
  EXPECT_EQ(format_text("quickstart/model-2.h5"), "quickstart/model-2.h5");
  EXPECT_EQ(format_text("../run"), "../run");
  for (const char* text : {"", "true", "No", "null", "~", "12", "1e3", ".inf", ".5", "a b", "a: b", "#x", "-x", "*x",
                           "[a]", "2024-01-01", "a,b", "caf\u00e9", "y"}) {
    EXPECT_EQ(format_text(text), "\"" + std::string(text) + "\"");
  }
  EXPECT_EQ(format_text("a\"b\\c\n\t\x01"), "\"a\\\"b\\\\c\\n\\t\\x01\"");
  EXPECT_EQ(format_list({"a", "b c"}), "[a, \"b c\"]");
  EXPECT_EQ(format_list({}), "[]");
}

TEST(OptionValue, RangesReadAsWords) {
  EXPECT_EQ(integer_range(1, 8), "from 1 to 8");
  EXPECT_EQ(integer_range(0, int64_max), "at least 0");
  EXPECT_EQ(integer_range(int64_min, 8), "at most 8");
  EXPECT_EQ(integer_range(int64_min, int64_max), "");
  EXPECT_EQ(real_range(0.0, 1.0), "from 0 to 1");
  EXPECT_EQ(real_range(1e-6, std::numeric_limits<double>::infinity()), "at least 1.0e-06");
  EXPECT_EQ(real_range(-std::numeric_limits<double>::infinity(), 0.5), "at most 0.5");
  EXPECT_EQ(real_range(std::numeric_limits<double>::lowest(), std::numeric_limits<double>::max()), "");
}

}  // namespace
}  // namespace dms
