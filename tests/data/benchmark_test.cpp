#include "data/benchmark.h"

#include <gtest/gtest.h>

#include <map>

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
  EXPECT_NE(refusal(BenchmarkKind::aime, "a.csv", "url,problems,answer\nu,p,1\n")
                .find("columns here: url, problems, answer\n  did you mean 'problems'?"),
            std::string::npos);
  const std::string twice = refusal(BenchmarkKind::math, "m.csv", "problem,answer,id\np,1,x\nq,2,x\n");
  EXPECT_NE(twice.find("m.csv:3: has the id 'x' of "), std::string::npos) << twice;
  EXPECT_NE(twice.find("m.csv:2"), std::string::npos) << twice;
  EXPECT_NE(refusal(BenchmarkKind::aime, "a.jsonl", "\n").find("holds no question"), std::string::npos);
  EXPECT_NE(refusal(BenchmarkKind::aime, "a.parquet", "PAR1....").find("Parquet"), std::string::npos);
  EXPECT_THROW(benchmark_named("amie"), UserError);
}

TEST(Benchmark, TakesWhatIsPackedOrAList) {
  const std::string list =
      "\xEF\xBB\xBF [{\"problem\": \"p\", \"answer\": 7, \"id\": null}, {\"problem\": \"q\", \"answer\": \"8\"}]\n";
  const auto items = read(BenchmarkKind::math, "math.json", list);
  ASSERT_EQ(items.size(), 2U);
  EXPECT_EQ(items[0].id, "math-0") << "null is no id";
  EXPECT_EQ(items[0].answers.front(), "7");
  // gzip of "problem,answer\nq,8\n"
  const unsigned char packed[] = {0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0x2b, 0x28, 0xca,
                                  0x4f, 0xca, 0x49, 0xcd, 0xd5, 0x49, 0xcc, 0x2b, 0x2e, 0x4f, 0x2d, 0xe2, 0x2a,
                                  0xd4, 0xb1, 0xe0, 0x02, 0x00, 0xa4, 0x9a, 0x28, 0xcf, 0x13, 0x00, 0x00, 0x00};
  const std::string bytes(reinterpret_cast<const char*>(packed), sizeof packed);
  EXPECT_EQ(read(BenchmarkKind::math, "math.csv.gz", bytes)[0].answers.front(), "8");
}

TEST(Benchmark, AnswersAreToldApartForAVote) {
  EXPECT_EQ(given_answer(BenchmarkKind::aime, "so \\boxed{033}"), "33");
  EXPECT_EQ(given_answer(BenchmarkKind::gpqa, "Answer: (b)"), "B");
  EXPECT_EQ(given_answer(BenchmarkKind::math, "ANSWER: $\\dfrac12$"),
            given_answer(BenchmarkKind::math, "\\boxed{1/2}"));
  EXPECT_EQ(given_answer(BenchmarkKind::math, "I do not know"), "");
  EXPECT_EQ(given_answer(BenchmarkKind::needles, "7"), "");
}

}  // namespace
}  // namespace dms
