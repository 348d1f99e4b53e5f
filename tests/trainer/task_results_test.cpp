#include "trainer/task_results.h"

#include <gtest/gtest.h>

#include <cmath>

#include "data/staged_file.h"
#include "recipes/user_error.h"
#include "tests/support/sandbox.h"

namespace dms {
namespace {

TaskResult result(const std::string& item, int64_t sample, double score, bool truncated = false) {
  return {item, sample, score, truncated, 10, 20, 300, 4000, "text \xE2\x82\xAC \"quoted\"\n"};
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

TEST(TaskResults, SurviveTheFileAndATornLastLine) {
  Sandbox sandbox(std::map<std::string, std::string>{});
  const std::string path = sandbox / "results.jsonl";
  EXPECT_TRUE(read_results(path).empty());
  const std::string whole = to_line(result("a", 0, 0.5)) + to_line(result("b", 1, 1.0, true));
  sandbox.write("results.jsonl", whole + to_line(result("c", 2, 1.0)).substr(0, 30));
  const auto results = read_results(path);
  ASSERT_EQ(results.size(), 2U);
  EXPECT_EQ(results[0].text, result("a", 0, 0.5).text);
  EXPECT_EQ(results[1].item, "b");
  EXPECT_TRUE(results[1].truncated);
  EXPECT_EQ(sandbox.read("results.jsonl"), whole) << "what is appended next must start a line of its own";
  sandbox.write("results.jsonl", "{\"item\": 3}\n");
  EXPECT_THROW(read_results(path), UserError);
}

}  // namespace
}  // namespace dms
