#include "trainer/task_results.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "data/staged_file.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

// Calls visit(name, member) for each condition; what paths say is not compared.
template <class Conditions, class Visit>
void each_condition(Conditions& c, const Visit& visit) {
  visit("task", c.task);
  visit("questions_sha256", c.questions_sha256);
  visit("model", c.model);
  visit("model_sha256", c.model_sha256);
  visit("evictor", c.evictor);
  visit("adapters", c.adapters);
  visit("adapters_sha256", c.adapters_sha256);
  visit("streaming_keys", c.streaming_keys);
  visit("chat_template", c.chat_template);
  visit("thinking", c.thinking);
  visit("max_new_tokens", c.max_new_tokens);
  visit("temperature", c.temperature);
  visit("top_p", c.top_p);
  visit("top_k", c.top_k);
  visit("seed", c.seed);
  visit("dtype", c.dtype);
  visit("bytes_per_key", c.bytes_per_key);
}

std::string dumped_line(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

// The text up to its last line break.
size_t complete_bytes(const std::string& text) {
  const size_t last = text.rfind('\n');
  return last == std::string::npos ? 0 : last + 1;
}

TaskConditions conditions_of(const nlohmann::json& json) {
  TaskConditions conditions;
  each_condition(conditions, [&](const char* name, auto& member) { json.at(name).get_to(member); });
  return conditions;
}

// Of the samples in groups of k (a last, smaller group is left out): the mean share of right answers among those that
// most samples of a group gave.
double majority_at_k(const std::vector<const TaskResult*>& samples, size_t k) {
  double sum = 0.0;
  size_t groups = 0;
  for (size_t first = 0; first + k <= samples.size(); first += k, ++groups) {
    std::map<std::string, std::pair<int64_t, bool>> votes;  // of an answer, and whether it is right
    int64_t most = 0;
    for (size_t i = first; i < first + k; ++i) {
      if (samples[i]->answer.empty()) continue;
      auto& [count, right] = votes[samples[i]->answer];
      most = std::max(most, ++count);
      right = samples[i]->score >= 1.0;
    }
    int64_t winners = 0, right_winners = 0;
    for (const auto& [answer, vote] : votes) {
      winners += vote.first == most ? 1 : 0;
      right_winners += vote.first == most && vote.second ? 1 : 0;
    }
    if (winners > 0) sum += static_cast<double>(right_winners) / static_cast<double>(winners);
  }
  return sum / static_cast<double>(groups);
}

}  // namespace

nlohmann::ordered_json to_json(const TaskConditions& conditions) {
  nlohmann::ordered_json json;
  each_condition(conditions, [&](const char* name, const auto& member) { json[name] = member; });
  return json;
}

std::string to_line(const TaskConditions& conditions) { return dumped_line({{"conditions", to_json(conditions)}}); }

std::string to_line(const TaskResult& r) {
  return dumped_line({{"item", r.item},
                      {"sample", r.sample},
                      {"score", r.score},
                      {"truncated", r.truncated},
                      {"answer", r.answer},
                      {"prompt_tokens", r.prompt_tokens},
                      {"new_tokens", r.new_tokens},
                      {"keys_read", r.keys_read},
                      {"peak_kv_bytes", r.peak_kv_bytes},
                      {"text", r.text}});
}

TaskResults read_results(const std::string& path) {
  TaskResults file;
  if (!std::filesystem::exists(path)) return file;
  const std::string text = read_file(path);
  const size_t complete = complete_bytes(text);
  int64_t line = 0;
  for (size_t begin = 0; begin < complete;) {
    const size_t end = text.find('\n', begin);
    ++line;
    try {
      const auto json = nlohmann::json::parse(text.substr(begin, end - begin));
      if (line == 1) {
        file.conditions = conditions_of(json.at("conditions"));
      } else {
        file.results.push_back({json.at("item"), json.at("sample"), json.at("score"), json.at("truncated"),
                                json.at("answer"), json.at("prompt_tokens"), json.at("new_tokens"),
                                json.at("keys_read"), json.at("peak_kv_bytes"), json.at("text")});
      }
    } catch (const nlohmann::json::exception& error) {
      throw UserError(path + ":" + std::to_string(line), "is no result of 'dms eval-tasks'", {error.what()});
    }
    begin = end + 1;
  }
  return file;
}

TaskResults read_results_to_continue(const std::string& path, const TaskConditions& conditions) {
  TaskResults file = read_results(path);
  if (file.conditions.has_value()) {
    const nlohmann::ordered_json there = to_json(*file.conditions), asked = to_json(conditions);
    std::vector<std::string> differences;
    for (const auto& [name, value] : asked.items()) {
      if (name == "model" || name == "adapters" || there[name] == value) continue;
      differences.push_back(name + " was " + there[name].dump() + ", now it would be " + value.dump());
    }
    if (!differences.empty()) {
      differences.push_back("name another file with --out, or move this one away");
      throw UserError(path, "holds answers that were given under other conditions", differences);
    }
  }
  if (std::filesystem::exists(path)) std::filesystem::resize_file(path, complete_bytes(read_file(path)));
  return file;
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
    summary.mean_prompt_tokens += static_cast<double>(result.prompt_tokens);
    summary.mean_new_tokens += static_cast<double>(result.new_tokens);
    summary.mean_keys_read += static_cast<double>(result.keys_read);
    summary.mean_peak_kv_bytes += static_cast<double>(result.peak_kv_bytes);
  }
  if (results.empty()) return summary;
  summary.items = static_cast<int64_t>(by_item.size());
  summary.completions = static_cast<int64_t>(results.size());
  for (double* mean :
       {&summary.mean_prompt_tokens, &summary.mean_new_tokens, &summary.mean_keys_read, &summary.mean_peak_kv_bytes}) {
    *mean /= static_cast<double>(results.size());
  }

  std::vector<double> means;
  size_t fewest = results.size();
  for (auto& [item, samples] : by_item) {
    // Not in the order they finished in: short answers finish first.
    std::sort(samples.begin(), samples.end(), [](const auto* a, const auto* b) { return a->sample < b->sample; });
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
  const bool any_answer = std::any_of(results.begin(), results.end(), [](const auto& r) { return !r.answer.empty(); });
  for (int64_t k = 1; k <= static_cast<int64_t>(fewest); k *= 2) {
    double sum = 0.0;
    for (const auto& [item, samples] : by_item) {
      const auto right =
          std::count_if(samples.begin(), samples.end(), [](const TaskResult* sample) { return sample->score >= 1.0; });
      sum += pass_at_k(static_cast<int64_t>(samples.size()), right, k);
    }
    summary.pass_at_k.emplace_back(k, sum / count);
    if (!any_answer) continue;
    double votes = 0.0;
    for (const auto& [item, samples] : by_item) votes += majority_at_k(samples, static_cast<size_t>(k));
    summary.maj_at_k.emplace_back(k, votes / count);
  }
  return summary;
}

}  // namespace dms
