#include "recipes/strict_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/temporary_directory.h"
#include "tests/support/tiny_model.h"
#include "tests/support/user_error_of.h"

namespace dms {
namespace {

std::string error_of(std::string_view text) {
  return user_error_of([&] { parse_strict_json(text, "x.json"); });
}

TEST(StrictJson, ValidTextIsParsed) {
  const nlohmann::json value =
      parse_strict_json(" {\"a\": [1, -2, 2.5, true, null, \"\\u00e9\"], \"b\": {\"a\": 1}}\n", "");
  EXPECT_EQ(value["a"][5], "\xc3\xa9");
  EXPECT_EQ(value["b"]["a"], 1);
}

TEST(StrictJson, ErrorsNameLineAndColumn) {
  EXPECT_TRUE(says(error_of(""), "x.json:1:1: not valid JSON"));
  EXPECT_TRUE(says(error_of("{\n  \"a\": 1,\n  \"b\" 2}"), "x.json:3:7: not valid JSON"));
  EXPECT_TRUE(says(error_of("{} {}"), "x.json:1:4: not valid JSON"));
  EXPECT_TRUE(says(error_of(std::string_view("{\n}\0{}", 6)), "x.json:2:2: not valid JSON: a NUL byte"));
  EXPECT_TRUE(says(error_of("[1, 2,]"), "x.json:1:7: not valid JSON"));
  EXPECT_TRUE(says(error_of("{\"a\": 1} // comment"), "x.json:1:10: not valid JSON"));
}

TEST(StrictJson, RepeatedKeysAreRefusedAtEveryDepthButNotAcrossObjects) {
  EXPECT_TRUE(says(error_of(R"({"a": 1, "b": 2, "a": 3})"), "x.json: the key 'a' appears twice in one object"));
  EXPECT_TRUE(says(error_of(R"([{"x": [{"b": 1, "\u0062": 2}]}])"), "the key 'b' appears twice"));
  EXPECT_EQ(error_of(R"({"a": {"b": 1}, "b": [{"b": 1}, {"b": 2}]})"), "(no UserError)");
}

TEST(StrictJson, DepthIsBounded) {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_EQ(error_of(nested(64)), "(no UserError)");
  EXPECT_TRUE(says(error_of(nested(70)), "nested deeper than 64 levels"));
  EXPECT_TRUE(says(error_of(std::string(3'000'000, '[')), "nested deeper than 64 levels"));
}

TEST(StrictJson, FilesMustHoldOneObjectOfReasonableSize) {
  const TemporaryDirectory dir;
  const auto read_error = [&](int64_t max_bytes = 100) {
    return user_error_of([&] { read_json_object(dir / "x.json", max_bytes); });
  };
  EXPECT_TRUE(says(read_error(), "x.json: no such file"));
  write_test_file(dir / "x.json", "{\"a\": 1}");
  EXPECT_EQ(read_json_object(dir / "x.json")["a"], 1);
  EXPECT_EQ(read_error(8), "(no UserError)");
  EXPECT_TRUE(says(read_error(7), "is 8 bytes long\n  expected a JSON file of at most 7 bytes"));
  write_test_file(dir / "x.json", "[1]");
  EXPECT_TRUE(says(read_error(), "holds [1]\n  expected a JSON object"));
  EXPECT_TRUE(says(user_error_of([&] { read_json_object(dir.path()); }), "not a regular file"));
}

TEST(StrictJson, UntrustedTextIsShownHarmlessAndShort) {
  EXPECT_EQ(in_quotes("plain \xc3\xa9"), "'plain \xc3\xa9'");
  EXPECT_EQ(in_quotes("\x1b[2J\n\x7f"), "'\\x1b[2J\\x0a\\x7f'");
  EXPECT_EQ(in_quotes(std::string(500, 'x')), "'" + std::string(120, 'x') + "...'");
  // Never half a character: 119 bytes and a two-byte one do not fit into 120.
  EXPECT_EQ(in_quotes(std::string(119, 'x') + "\xc3\xa9yz"), "'" + std::string(119, 'x') + "...'");
  EXPECT_EQ(shown(nlohmann::json::parse("{\"a\": [1, 2]}")), "{\"a\":[1,2]}");
  EXPECT_EQ(shown(std::string(500, 'x')), "\"" + std::string(119, 'x') + "...");
}

}  // namespace
}  // namespace dms
