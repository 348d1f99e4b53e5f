#include "data/benchmark.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "recipes/user_error.h"
#include "tests/support/sandbox.h"

namespace dms {
namespace {

std::vector<BenchmarkItem> read(BenchmarkKind kind, const std::string& name, const std::string& text) {
  Sandbox sandbox(std::map<std::string, std::string>{{name, text}});
  return read_benchmark(kind, sandbox / name);
}

std::string refusal(BenchmarkKind kind, const std::string& name, const std::string& text) {
  try {
    read(kind, name, text);
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Benchmark, ReadsAimeFromLinesOfJson) {
  const auto items = read(BenchmarkKind::aime, "aime.jsonl",
                          "{\"id\": 60, \"problem\": \"What is 200 + 4?\", \"answer\": \"204\"}\n\n"
                          "{\"ID\": \"2024-I-2\", \"Problem\": \"And 30 + 3?\", \"Answer\": \"033\"}\n");
  ASSERT_EQ(items.size(), 2U);
  EXPECT_EQ(items[0].id, "60");
  EXPECT_NE(items[0].prompt.find("What is 200 + 4?"), std::string::npos);
  EXPECT_EQ(grade(BenchmarkKind::aime, "\\boxed{204}", items[0]), 1.0);
  EXPECT_EQ(grade(BenchmarkKind::aime, "\\boxed{33}", items[1]), 1.0);
  EXPECT_EQ(grade(BenchmarkKind::aime, "\\boxed{34}", items[1]), 0.0);
}

const char* const kGpqa =
    "Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\r\n"
    "rec1,\"Which, of these,\nis \"\"red\"\"?\",blood,grass,sky,snow\r\n"
    "rec2,Which is cold?,ice,fire,sun,lava\n";

TEST(Benchmark, ReadsGpqaFromCsvAndShufflesTheChoicesTheSameWayEachTime) {
  const auto items = read(BenchmarkKind::gpqa, "gpqa.csv", kGpqa);
  ASSERT_EQ(items.size(), 2U);
  EXPECT_EQ(items[0].id, "rec1");
  EXPECT_NE(items[0].prompt.find("Which, of these,\nis \"red\"?"), std::string::npos);
  for (const BenchmarkItem& item : items) {
    const std::string& letter = item.answers.front();
    const std::string right = item.id == "rec1" ? "blood" : "ice";
    EXPECT_NE(item.prompt.find(letter + ") " + right), std::string::npos) << item.prompt;
    EXPECT_EQ(grade(BenchmarkKind::gpqa, "Answer: " + letter, item), 1.0);
  }
  EXPECT_EQ(read(BenchmarkKind::gpqa, "gpqa.csv", kGpqa)[1].prompt, items[1].prompt);
}

TEST(Benchmark, SaysWhatIsWrongWithAFile) {
  EXPECT_NE(refusal(BenchmarkKind::gpqa, "g.csv", "Question\nwhy?\n").find("g.csv:2: has no column 'Correct Answer'"),
            std::string::npos);
  EXPECT_NE(refusal(BenchmarkKind::gpqa, "g.csv", "a,b\n1\n").find("g.csv:2: has 1 fields"), std::string::npos);
  EXPECT_NE(refusal(BenchmarkKind::gpqa, "g.csv", "a\n\"x\n").find("not closed"), std::string::npos);
  EXPECT_NE(refusal(BenchmarkKind::aime, "a.jsonl", "{\"problem\": \"p\"}\n").find("a.jsonl:1: has no column 'answer'"),
            std::string::npos);
  EXPECT_NE(refusal(BenchmarkKind::aime, "a.jsonl", "\n").find("holds no question"), std::string::npos);
  EXPECT_NE(refusal(BenchmarkKind::aime, "a.parquet", "PAR1....").find("Parquet"), std::string::npos);
  EXPECT_THROW(benchmark_named("amie"), UserError);
}

int64_t count_words(std::string_view text) {
  int64_t words = 1;
  for (char c : text) words += c == ' ' || c == '\n' ? 1 : 0;
  return words;
}

TEST(Needles, FillTheLengthHideEachNumberOnceAndDependOnTheSeed) {
  const NeedleOptions options{.count = 8, .num_tokens = 500, .num_needles = 3, .seed = 4};
  const auto items = make_needle_items(options, count_words);
  ASSERT_EQ(items.size(), 8U);
  std::set<size_t> places;
  for (const BenchmarkItem& item : items) {
    EXPECT_LE(count_words(item.prompt), 500);
    EXPECT_GE(count_words(item.prompt), 480);
    ASSERT_EQ(item.answers.size(), 3U);
    for (const std::string& number : item.answers) {
      const size_t at = item.prompt.find(number);
      ASSERT_NE(at, std::string::npos);
      EXPECT_EQ(item.prompt.find(number, at + 1), std::string::npos);
      places.insert(at);
    }
    EXPECT_EQ(grade(BenchmarkKind::needles, item.answers[0] + " and " + item.answers[2], item), 2.0 / 3.0);
  }
  EXPECT_GT(places.size(), 12U) << "needles should be anywhere";
  EXPECT_EQ(make_needle_items(options, count_words)[3].prompt, items[3].prompt);
  EXPECT_NE(make_needle_items({.count = 8, .num_tokens = 500, .num_needles = 3, .seed = 5}, count_words)[3].prompt,
            items[3].prompt);
  EXPECT_THROW(make_needle_items({.count = 1, .num_tokens = 20}, count_words), UserError);
}

}  // namespace
}  // namespace dms
