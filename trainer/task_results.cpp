#include "trainer/task_results.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "data/staged_file.h"
#include "recipes/user_error.h"

namespace dms {

std::string to_line(const TaskResult& r) {
  const nlohmann::ordered_json json{{"item", r.item},
                                    {"sample", r.sample},
                                    {"score", r.score},
                                    {"truncated", r.truncated},
                                    {"prompt_tokens", r.prompt_tokens},
                                    {"new_tokens", r.new_tokens},
                                    {"keys_read", r.keys_read},
                                    {"peak_kv_bytes", r.peak_kv_bytes},
                                    {"text", r.text}};
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::vector<TaskResult> read_results(const std::string& path) {
  std::vector<TaskResult> results;
  if (!std::filesystem::exists(path)) return results;
  const std::string text = read_file(path);
  const size_t complete = text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1;
  if (complete < text.size()) std::filesystem::resize_file(path, complete);
  int64_t line = 0;
  for (size_t begin = 0; begin < complete;) {
    const size_t end = text.find('\n', begin);
    ++line;
    try {
      const auto json = nlohmann::json::parse(text.substr(begin, end - begin));
      results.push_back({json.at("item"), json.at("sample"), json.at("score"), json.at("truncated"),
                         json.at("prompt_tokens"), json.at("new_tokens"), json.at("keys_read"),
                         json.at("peak_kv_bytes"), json.at("text")});
    } catch (const nlohmann::json::exception& error) {
      throw UserError(path + ":" + std::to_string(line), "is no result of 'dms eval-tasks'", {error.what()});
    }
    begin = end + 1;
  }
  return results;
}

double pass_at_k(int64_t num_samples, int64_t num_right, int64_t k) {
  if (num_samples - num_right < k) return 1.0;
  double all_wrong = 1.0;
  for (int64_t i = num_samples - num_right + 1; i <= num_samples; ++i) {
    all_wrong *= 1.0 - static_cast<double>(k) / static_cast<double>(i);
  }
  return 1.0 - all_wrong;
}

TaskSummary summarize(const std::vector<TaskResult>& results) {
  TaskSummary summary;
  std::map<std::string, std::vector<const TaskResult*>> by_item;
  for (const TaskResult& result : results) {
    by_item[result.item].push_back(&result);
    summary.truncated += result.truncated ? 1 : 0;
    summary.mean_new_tokens += static_cast<double>(result.new_tokens);
    summary.mean_keys_read += static_cast<double>(result.keys_read);
    summary.mean_peak_kv_bytes += static_cast<double>(result.peak_kv_bytes);
  }
  if (results.empty()) return summary;
  summary.items = static_cast<int64_t>(by_item.size());
  summary.completions = static_cast<int64_t>(results.size());
  for (double* mean : {&summary.mean_new_tokens, &summary.mean_keys_read, &summary.mean_peak_kv_bytes}) {
    *mean /= static_cast<double>(results.size());
  }

  std::vector<double> means;
  size_t fewest = results.size();
  for (const auto& [item, samples] : by_item) {
    double sum = 0.0;
    for (const TaskResult* sample : samples) sum += sample->score;
    means.push_back(sum / static_cast<double>(samples.size()));
    fewest = std::min(fewest, samples.size());
  }
  const auto count = static_cast<double>(means.size());
  for (double mean : means) summary.pass_at_1 += mean / count;
  double squares = 0.0;
  for (double mean : means) squares += (mean - summary.pass_at_1) * (mean - summary.pass_at_1);
  if (means.size() > 1) summary.standard_error = std::sqrt(squares / (count - 1.0) / count);
  for (int64_t k = 1; k <= static_cast<int64_t>(fewest); k *= 2) {
    double sum = 0.0;
    for (const auto& [item, samples] : by_item) {
      const auto right =
          std::count_if(samples.begin(), samples.end(), [](const TaskResult* sample) { return sample->score >= 1.0; });
      sum += pass_at_k(static_cast<int64_t>(samples.size()), right, k);
    }
    summary.pass_at_k.emplace_back(k, sum / count);
  }
  return summary;
}

}  // namespace dms
