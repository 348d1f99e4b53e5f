#include "trainer/metrics.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <type_traits>

#include "data/staged_file.h"
#include "recipes/user_error.h"

namespace dms {
namespace {

using nlohmann::json;

std::string metrics_path(const std::string& run_dir) { return run_dir + "/metrics.jsonl"; }

// The complete lines of the file: what follows the last newline is torn, its writer was killed.
std::vector<std::string_view> complete_lines(std::string_view text) {
  std::vector<std::string_view> lines;
  for (size_t newline = text.find('\n'); newline != std::string_view::npos; newline = text.find('\n')) {
    lines.push_back(text.substr(0, newline));
    text.remove_prefix(newline + 1);
  }
  return lines;
}

// Throws UserError for line `index` (from 0).
json parse_line(const std::string& path, size_t index, std::string_view line) {
  json record = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!record.is_object() || !record.contains("step") || !record["step"].is_number_integer()) {
    throw UserError(path + ":" + std::to_string(index + 1), "not a record of a training step",
                    {"expected one JSON object with an integer 'step' on each line",
                     "delete the line, or move the file away: training does not need it to resume"});
  }
  return record;
}

// Rewrites the file without the lines of steps that will be computed again.  Returns its path.
std::string cut_back(const std::string& run_dir, int64_t resume_step) {
  const std::string path = metrics_path(run_dir);
  if (!std::filesystem::exists(path)) return path;
  std::string kept;
  if (resume_step > 0) {
    const std::string text = read_file(path);
    const std::vector<std::string_view> lines = complete_lines(text);
    for (size_t i = 0; i < lines.size(); ++i) {
      if (parse_line(path, i, lines[i])["step"].get<int64_t>() < resume_step) kept.append(lines[i]).push_back('\n');
    }
    if (kept.size() == text.size()) return path;
  }
  write_file(path, kept);
  return path;
}

// The fields of a record by name, in the order in which they are written: visit(name, member).
template <class Metrics, class Visit>
void for_each_field(Metrics& m, const Visit& visit) {
  visit("step", m.step);
  visit("loss", m.loss);
  visit("kl", m.kl);
  visit("compression_loss", m.compression_loss);
  visit("target_cr", m.target_cr);
  visit("eviction_rate", m.eviction_rate);
  visit("alpha_mean", m.alpha_mean);
  visit("grad_norm", m.grad_norm);
  visit("lr", m.lr);
  visit("tokens_per_s", m.tokens_per_s);
  visit("mfu", m.mfu);
  visit("peak_memory_bytes", m.peak_memory_bytes);
  visit("seconds", m.seconds);
  visit("rank_seconds", m.rank_seconds);
  visit("rank_data_seconds", m.rank_data_seconds);
  visit("rank_communication_seconds", m.rank_communication_seconds);
  visit("rank_compute_seconds", m.rank_compute_seconds);
}

std::string json_line(const StepMetrics& metrics) {
  nlohmann::ordered_json record;
  for_each_field(metrics, [&](const char* name, const auto& value) { record[name] = value; });
  return record.dump() + "\n";
}

void read_field(const json& value, int64_t& field) { field = value.get<int64_t>(); }

void read_field(const json& value, double& field) {
  field = value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

void read_field(const json& value, std::vector<double>& field) { field = value.get<std::vector<double>>(); }

}  // namespace

int64_t straggler_of(const StepMetrics& metrics) {
  std::vector<double> sorted = metrics.rank_compute_seconds;
  if (sorted.size() < 2) return -1;
  std::sort(sorted.begin(), sorted.end());
  // The lower of the two middle ones: of two ranks the slower one can then be a straggler.
  if (sorted.back() <= (1.0 + kStragglerShare) * sorted[(sorted.size() - 1) / 2]) return -1;
  const auto slowest = std::max_element(metrics.rank_compute_seconds.begin(), metrics.rank_compute_seconds.end());
  return slowest - metrics.rank_compute_seconds.begin();
}

MetricsLog::MetricsLog(const std::string& run_dir, int64_t resume_step)
    : lines_(cut_back(run_dir, resume_step), AppendFile::Mode::extend),
      tensorboard_(run_dir + "/tensorboard", resume_step) {}

void MetricsLog::append(const StepMetrics& m) {
  lines_.append(json_line(m));
  const auto longest = [](const std::vector<double>& of_ranks) {
    return of_ranks.empty() ? 0.0 : *std::max_element(of_ranks.begin(), of_ranks.end());
  };
  const std::array<TensorBoardScalar, 16> scalars = {{
      {"loss/total", m.loss},
      {"loss/kl", m.kl},
      {"loss/compression", m.compression_loss},
      {"eviction/rate", m.eviction_rate},
      {"eviction/target_rate", 1.0 - 1.0 / m.target_cr},
      {"eviction/target_cr", m.target_cr},
      {"eviction/alpha_mean", m.alpha_mean},
      {"optimizer/grad_norm", m.grad_norm},
      {"optimizer/lr", m.lr},
      {"speed/tokens_per_s", m.tokens_per_s},
      {"speed/step_seconds", m.seconds},
      {"speed/mfu", m.mfu},
      {"ranks/compute_seconds", longest(m.rank_compute_seconds)},
      {"ranks/communication_seconds", longest(m.rank_communication_seconds)},
      {"ranks/data_seconds", longest(m.rank_data_seconds)},
      {"memory/peak_bytes", static_cast<double>(m.peak_memory_bytes)},
  }};
  tensorboard_.append(m.step, scalars);
}

std::vector<StepMetrics> read_metrics(const std::string& run_dir) {
  const std::string path = metrics_path(run_dir);
  std::vector<StepMetrics> steps;
  if (!std::filesystem::exists(path)) return steps;
  const std::string text = read_file(path);
  const std::vector<std::string_view> lines = complete_lines(text);
  for (size_t i = 0; i < lines.size(); ++i) {
    const json record = parse_line(path, i, lines[i]);
    for_each_field(steps.emplace_back(), [&](const char* name, auto& field) {
      // Runs from before there were ranks do not have theirs.
      if (std::is_same_v<std::remove_reference_t<decltype(field)>, std::vector<double>> && !record.contains(name))
        return;
      try {
        read_field(record.at(name), field);
      } catch (const json::exception&) {
        throw UserError(path + ":" + std::to_string(i + 1), "'" + std::string(name) + "' is missing or not a number");
      }
    });
  }
  return steps;
}

}  // namespace dms
