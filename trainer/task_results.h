// What a model answered to a benchmark, one line of JSON a completion, and what follows from it.
//
//   pass@1  mean over problems of the mean over samples; its standard error from the spread of the problems' means
//   pass@k  1 - C(n - c, k) / C(n, k), n samples of which c are right, averaged over problems (Chen et al. 2021)
// A completion cut off at the token limit counts as it is graded (in reasoning models: wrong) and is counted apart.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace dms {

struct TaskResult {
  std::string item;
  int64_t sample = 0;
  double score = 0.0;      // 1 = right
  bool truncated = false;  // by the token limit
  int64_t prompt_tokens = 0, new_tokens = 0;
  int64_t keys_read = 0;  // summed over queries, layers and KV heads
  int64_t peak_kv_bytes = 0;
  std::string text;
};

std::string to_line(const TaskResult& result);  // with its line break

// Every complete line of a results file; a torn last one (the writer was killed) is dropped from the file.  An absent
// file holds nothing.  Throws UserError on any other line that is no result.
std::vector<TaskResult> read_results(const std::string& path);

struct TaskSummary {
  int64_t items = 0, completions = 0, truncated = 0;
  double pass_at_1 = 0.0, standard_error = 0.0;       // 0 for a single problem
  std::vector<std::pair<int64_t, double>> pass_at_k;  // k = 1, 2, 4, ... up to the fewest samples of a problem
  double mean_new_tokens = 0.0, mean_keys_read = 0.0, mean_peak_kv_bytes = 0.0;
};
TaskSummary summarize(const std::vector<TaskResult>& results);

// 1 - C(n - c, k) / C(n, k)
double pass_at_k(int64_t num_samples, int64_t num_right, int64_t k);

}  // namespace dms
