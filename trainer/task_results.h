// What a model answered to a benchmark, and what follows from it.  A results file is JSON lines: the conditions first, then
// a completion a line.
//
//   pass@1  mean over problems of the mean over samples; its standard error from the spread of the problems' means
//   pass@k  1 - C(n - c, k) / C(n, k), n samples of which c are right, averaged over problems (Chen et al. 2021)
//   maj@k   a vote of k samples: over a problem's samples in groups of k, the share of groups whose most frequent answer
//           is right; answers that tie share, a sample without an answer does not vote
// A completion cut off at the token limit counts as it is graded (in reasoning models: wrong) and is counted apart.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace dms {

// Everything that a completion depends on.  Paths say where it came from; hashes, what it was.
struct TaskConditions {
  std::string task;
  std::string questions_sha256;
  std::string model, model_sha256;
  std::string evictor;  // none, trained or sinks + window
  std::string adapters, adapters_sha256;
  int64_t streaming_keys = 0;  // that sinks + window keep
  std::string chat_template;   // "": prompts as they are
  std::string thinking;        // on, off, or "": as the template has it
  int64_t max_new_tokens = 0;
  double temperature = 0.0, top_p = 1.0;
  int64_t top_k = 0;
  uint64_t seed = 0;
  std::string dtype;
  int64_t bytes_per_key = 0;  // of one key and its value
};

struct TaskResult {
  std::string item;
  int64_t sample = 0;
  double score = 0.0;      // 1 = right
  bool truncated = false;  // by the token limit
  std::string answer;      // what was graded, for votes; "" for none
  int64_t prompt_tokens = 0, new_tokens = 0;
  int64_t keys_read = 0;  // summed over queries, layers and KV heads
  int64_t peak_kv_bytes = 0;
  std::string text;
};

// Lines of the file, with their line breaks.
std::string to_line(const TaskConditions& conditions);
std::string to_line(const TaskResult& result);
nlohmann::ordered_json to_json(const TaskConditions& conditions);

struct TaskResults {
  std::optional<TaskConditions> conditions;  // of a file that holds any
  std::vector<TaskResult> results;
};

// An absent file holds nothing; a torn last line (the writer was killed) is no part of it.  Throws UserError on any other
// line that is no result, and on results without conditions.
TaskResults read_results(const std::string& path);
// The same for a file that is going to be continued: a torn last line is cut off.  Throws UserError naming what differs
// when it holds results under other conditions.
TaskResults read_results_to_continue(const std::string& path, const TaskConditions& conditions);

struct TaskSummary {
  int64_t items = 0, completions = 0, truncated = 0;
  double pass_at_1 = 0.0, standard_error = 0.0;       // 0 for a single problem
  std::vector<std::pair<int64_t, double>> pass_at_k;  // k = 1, 2, 4, ... up to the fewest samples of a problem
  std::vector<std::pair<int64_t, double>> maj_at_k;   // the same k; empty when nothing was answered
  // Of a completion.
  double mean_prompt_tokens = 0.0, mean_new_tokens = 0.0, mean_keys_read = 0.0, mean_peak_kv_bytes = 0.0;
};
TaskSummary summarize(const std::vector<TaskResult>& results);

// 1 - C(n - c, k) / C(n, k)
double pass_at_k(int64_t num_samples, int64_t num_right, int64_t k);

}  // namespace dms
