#include "trainer/metrics.h"

#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "data/staged_file.h"
#include "recipes/user_error.h"

namespace dms {
namespace {

// The step of one line, or -1 when the line is not a whole record.
int64_t step_of(std::string_view line) {
  const nlohmann::json record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!record.is_object()) return -1;
  const auto step = record.find("step");
  if (step == record.end() || !step->is_number_integer()) return -1;
  return step->get<int64_t>();
}

// Rewrites the file without the lines of steps that will be computed again.  Returns its path.
std::string cut_back(const std::string& run_dir, int64_t resume_step) {
  const std::string path = run_dir + "/metrics.jsonl";
  if (!std::filesystem::exists(path)) return path;
  if (resume_step == 0) {
    write_file(path, "");
    return path;
  }
  const std::string text = read_file(path);
  std::string kept;
  size_t begin = 0;
  for (int64_t line_number = 1; begin < text.size(); ++line_number) {
    const size_t newline = text.find('\n', begin);
    if (newline == std::string::npos) break;  // torn: its writer was killed
    const std::string_view line = std::string_view(text).substr(begin, newline - begin);
    const int64_t step = step_of(line);
    if (step < 0) {
      throw UserError(path + ":" + std::to_string(line_number), "not a record of a training step",
                      {"expected one JSON object with an integer 'step' on each line",
                       "delete the line, or move the file away: training does not need it to resume"});
    }
    if (step < resume_step) kept.append(line).push_back('\n');
    begin = newline + 1;
  }
  if (kept.size() != text.size()) write_file(path, kept);
  return path;
}

std::string json_line(const StepMetrics& m) {
  const nlohmann::ordered_json record = {
      {"step", m.step},
      {"loss", m.loss},
      {"kl", m.kl},
      {"compression_loss", m.compression_loss},
      {"target_cr", m.target_cr},
      {"eviction_rate", m.eviction_rate},
      {"alpha_mean", m.alpha_mean},
      {"grad_norm", m.grad_norm},
      {"lr", m.lr},
      {"tokens_per_s", m.tokens_per_s},
      {"mfu", m.mfu},
      {"peak_memory_bytes", m.peak_memory_bytes},
      {"seconds", m.seconds},
  };
  return record.dump() + "\n";
}

}  // namespace

MetricsLog::MetricsLog(const std::string& run_dir, int64_t resume_step)
    : lines_(cut_back(run_dir, resume_step), AppendFile::Mode::extend),
      tensorboard_(run_dir + "/tensorboard", resume_step) {}

void MetricsLog::append(const StepMetrics& m) {
  lines_.append(json_line(m));
  const std::array<TensorBoardScalar, 13> scalars = {{
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
      {"memory/peak_bytes", static_cast<double>(m.peak_memory_bytes)},
  }};
  tensorboard_.append(m.step, scalars);
}

}  // namespace dms
