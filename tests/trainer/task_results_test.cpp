#include "trainer/task_results.h"

#include <gtest/gtest.h>

#include <cmath>

#include "data/staged_file.h"
#include "recipes/user_error.h"
#include "tests/support/sandbox.h"

namespace dms {
namespace {

TaskResult result(const std::string& item, int64_t sample, double score, bool truncated = false,
                  const std::string& answer = "") {
  return {item, sample, score, truncated, answer, 10, 20, 300, 4000, "text \xE2\x82\xAC \"quoted\"\n"};
}

TaskConditions conditions() {
  TaskConditions conditions;
  conditions.task = "aime";
  conditions.model = "model";
  conditions.temperature = 0.6;
  conditions.seed = 0xFFFFFFFFFFFFFFFFULL;
  return conditions;
}

// Brute force: every choice of k of the n samples.
double pass_at_k_by_counting(int n, int right, int k) {
  int choices = 0, passing = 0;
  for (int mask = 0; mask < 1 << n; ++mask) {
    if (__builtin_popcount(static_cast<unsigned>(mask)) != k) continue;
    ++choices;
    passing += (mask & ((1 << right) - 1)) != 0;
  }
  return static_cast<double>(passing) / choices;
}

TEST(TaskResults, PassAtKIsTheShareOfChoicesWithARightOne) {
  for (int n = 1; n <= 8; ++n) {
    for (int right = 0; right <= n; ++right) {
      for (int k = 1; k <= n; ++k) EXPECT_NEAR(pass_at_k(n, right, k), pass_at_k_by_counting(n, right, k), 1e-12);
    }
  }
}

TEST(TaskResults, SummaryIsOverProblemsNotCompletions) {
  const TaskSummary summary = summarize({result("a", 0, 1.0), result("a", 1, 1.0), result("a", 2, 0.0, true),
                                         result("a", 3, 0.0), result("b", 0, 1.0), result("b", 1, 1.0)});
  EXPECT_EQ(summary.items, 2);
  EXPECT_EQ(summary.completions, 6);
  EXPECT_EQ(summary.truncated, 1);
  EXPECT_DOUBLE_EQ(summary.pass_at_1, 0.75);
  EXPECT_DOUBLE_EQ(summary.standard_error, std::sqrt(2 * 0.25 * 0.25 / 1 / 2));
  ASSERT_EQ(summary.pass_at_k.size(), 2U);  // up to b's two samples
  EXPECT_DOUBLE_EQ(summary.pass_at_k[1].second, (pass_at_k(4, 2, 2) + 1.0) / 2);
  EXPECT_EQ(summary.mean_keys_read, 300.0);
}

TEST(TaskResults, TheVoteIsOfGroupsOfSamplesInOrder) {
  // Two of three say 7; of the first two one says 7 and one nothing; then a tie of 7 and 8.
  const auto summary = summarize({result("a", 3, 0.0, false, "8"), result("a", 0, 1.0, false, "7"),
                                  result("a", 1, 0.0, false, ""), result("a", 2, 1.0, false, "7")});
  ASSERT_EQ(summary.maj_at_k.size(), 3U);
  EXPECT_DOUBLE_EQ(summary.maj_at_k[0].second, 0.5);   // as pass@1
  EXPECT_DOUBLE_EQ(summary.maj_at_k[1].second, 0.75);  // {7, -} is right, {7, 8} half
  EXPECT_DOUBLE_EQ(summary.maj_at_k[2].second, 1.0);
  EXPECT_TRUE(summarize({result("a", 0, 1.0)}).maj_at_k.empty()) << "nobody answered anything";
  EXPECT_DOUBLE_EQ(summarize({result("a", 0, 0.0, true, ""), result("b", 0, 1.0, false, "1")}).maj_at_k[0].second, 0.5);
}

TEST(TaskResults, SurviveTheFileAndATornLastLine) {
  Sandbox sandbox(std::map<std::string, std::string>{});
  const std::string path = sandbox / "results.jsonl";
  EXPECT_TRUE(read_results(path).results.empty());
  const std::string whole =
      to_line(conditions()) + to_line(result("a", 0, 0.5)) + to_line(result("b", 1, 1.0, true, "7"));
  sandbox.write("results.jsonl", whole + to_line(result("c", 2, 1.0)).substr(0, 30));
  const auto results = read_results(path).results;
  ASSERT_EQ(results.size(), 2U);
  EXPECT_EQ(results[0].text, result("a", 0, 0.5).text);
  EXPECT_EQ(results[1].item, "b");
  EXPECT_EQ(results[1].answer, "7");
  EXPECT_TRUE(results[1].truncated);
  EXPECT_EQ(to_line(*read_results_to_continue(path, conditions()).conditions), to_line(conditions()));
  EXPECT_EQ(sandbox.read("results.jsonl"), whole) << "what is appended next must start a line of its own";
  for (const std::string wrong : {"{\"item\": 3}\n", "{}\n"}) {
    sandbox.write("results.jsonl", wrong);
    EXPECT_THROW(read_results(path), UserError);
  }
  sandbox.write("results.jsonl", to_line(result("a", 0, 0.5)));
  EXPECT_THROW(read_results(path), UserError) << "of which nobody can tell what model gave them";
}

TEST(TaskResults, OfOtherConditionsAreNotContinued) {
  Sandbox sandbox(std::map<std::string, std::string>{});
  sandbox.write("results.jsonl", to_line(conditions()));
  TaskConditions other = conditions();
  other.model = "moved/model";
  EXPECT_NO_THROW(read_results_to_continue(sandbox / "results.jsonl", other));
  other.temperature = 1.0;
  try {
    read_results_to_continue(sandbox / "results.jsonl", other);
    ADD_FAILURE() << "continued";
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("temperature was 0.6, now it would be 1.0"), std::string::npos);
  }
}

}  // namespace
}  // namespace dms
