// Everything a report is made of, read from files: what a run directory and an evaluation's JSON say.  Old runs can
// thus be reported again, and nothing in a report can differ from the files beside it.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "tools/decode_charts.h"
#include "trainer/metrics.h"

namespace dms {

inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

struct PositionKl {  // the mean over positions from <= t < to
  int64_t from = 0, to = 0;
  double kl_mean = kUnknown;
};

struct LastUseKl {  // trainer/last_use.h; {0, 1}: tokens new to their text
  int64_t from = 0, to = 0, tokens = 0;
  double kl_mean = kUnknown;
};

struct BaselineResult {
  double kl_mean = kUnknown, kl_mean_second_half = kUnknown, kv_memory_ratio = kUnknown;
  std::vector<PositionKl> kl_by_position;
  std::vector<LastUseKl> kl_by_last_use;
};

struct MemoryAtLength {
  int64_t tokens = 0;
  double dense_bytes = 0, allocated_bytes = 0;
};

struct SampleToken {
  std::string text;
  int64_t kept_heads = 0;
};

// `dms eval --json`, possibly with what quickstart's summary.json adds.  kUnknown or empty: the file does not say.
struct EvalResult {
  double kl_mean = kUnknown, kl_mean_second_half = kUnknown, kl_max = kUnknown, top1_agreement = kUnknown;
  double ppl_teacher = kUnknown, ppl_student = kUnknown;
  double eviction_rate = kUnknown, kv_memory_ratio = kUnknown, kv_read_ratio = kUnknown, noise_floor_kl = kUnknown;
  double kv_live_ratio = kUnknown, target_ratio = kUnknown, ratio_drift = kUnknown;
  double tokens = kUnknown, sequence_length = kUnknown, window = kUnknown;
  std::string adapter;
  BaselineResult sliding_window, streaming_llm;
  std::vector<PositionKl> kl_by_position;
  std::vector<LastUseKl> kl_by_last_use;
  std::vector<std::vector<double>> keep_rate_LG;
  std::vector<MemoryAtLength> memory_by_length;
  std::vector<SampleToken> sample;
  int64_t sample_heads_total = 0;
  std::vector<std::pair<std::string, EvalResult>> sets;
  double wall_seconds = kUnknown;  // of everything, download and build included
};

// What one results file of `dms eval-tasks` says about answering with a vote of so many samples: costs of a problem.
struct TaskPoint {
  std::string task, questions_sha256;  // points compare where both are equal
  double prompt_tokens = 0;            // mean
  std::string evictor;                 // none, trained, sinks + window
  int64_t samples = 0;
  double accuracy = 0, standard_error = kUnknown;
  double tokens = 0, kv_read_bytes = 0, peak_kv_bytes = 0;
};

struct ReportInput {
  std::string run_dir, eval_path;  // as given; eval_path may be empty
  std::string model_name;

  std::string recipe;  // the text of recipe.yaml
  std::string model_path;
  std::vector<std::string> held_out_paths;
  std::string adapter_kind;
  int64_t window = 0, planned_steps = 0, warm_start_tokens = 0, tokens_per_step = 0;

  std::vector<StepMetrics> metrics;
  bool has_eval = false;
  EvalResult eval;
  std::vector<DecodePoint> decode;
  std::vector<TaskPoint> tasks;
};

// `model_name` empty: the base model's name in the newest checkpoint, else the model's directory name.
// Throws UserError: no such run, malformed files, an evaluation without kl_mean and kv_memory_ratio.
ReportInput read_report_input(const std::string& run_dir, const std::string& eval_path, std::string model_name);

EvalResult parse_eval(std::string_view json_text, const std::string& where);

}  // namespace dms
