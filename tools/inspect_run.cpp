// Run directories: what was asked for, how far it went, and which checkpoints hold.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoints/run_dir.h"
#include "data/staged_file.h"
#include "tools/inspect.h"
#include "tools/report_input.h"

namespace dms {

using nlohmann::ordered_json;

void describe_run(const std::string& dir, ordered_json& description) {
  const ReportInput run = read_report_input(dir, "", "");
  description["recipe_sha256"] = sha256_file(dir + "/recipe.yaml");
  description["model"] = run.model_path;
  description["adapter"] = run.adapter_kind;
  description["window"] = run.window;
  description["warm_start_tokens"] = run.warm_start_tokens;
  description["tokens_per_step"] = run.tokens_per_step;
  description["steps_planned"] = run.planned_steps;
  description["steps_done"] = run.metrics.size();
  if (!run.metrics.empty()) {
    const StepMetrics& last = run.metrics.back();
    description["last_step"] = {{"step", last.step},
                                {"loss", last.loss},
                                {"kl", last.kl},
                                {"eviction_rate", last.eviction_rate},
                                {"target_eviction_rate", 1 - 1 / last.target_cr},
                                {"tokens_per_s", last.tokens_per_s},
                                {"peak_memory_bytes", last.peak_memory_bytes}};
  }
  ordered_json checkpoints = ordered_json::array();
  std::string newest_complete;
  for (const CheckpointDir& checkpoint : list_checkpoints(dir)) {
    const std::string problem = checkpoint_problem(checkpoint.path);
    checkpoints.push_back({{"step", checkpoint.step}, {"state", problem.empty() ? "complete" : problem}});
    if (problem.empty() && newest_complete.empty()) newest_complete = checkpoint.path;
  }
  description["checkpoints"] = checkpoints;
  if (!newest_complete.empty()) {
    ordered_json adapters = ordered_json::object();
    describe_adapters(newest_complete, adapters);
    description["newest_checkpoint"] = adapters;
  }
}

}  // namespace dms
