// Adapter directories, and the checkpoints of a run, which hold one each.
#include <algorithm>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "checkpoints/run_dir.h"
#include "checkpoints/safetensors.h"
#include "recipes/strict_json.h"
#include "recipes/user_error.h"
#include "tools/inspect.h"

namespace dms {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

// Keys of dms_config.json in the order of interest to a reader; others are not shown.
constexpr const char* kSettings[] = {"adapter",
                                     "bias",
                                     "rank",
                                     "alpha_scale",
                                     "alpha_offset",
                                     "window",
                                     "decision_shift",
                                     "zero_after_rope",
                                     "attend_across_documents",
                                     "target_cr",
                                     "step",
                                     "sequence_length",
                                     "base_model",
                                     "base_sha256",
                                     "recipe_sha256",
                                     "created_by"};

}  // namespace

void describe_adapters(const std::string& dir, ordered_json& description) {
  const std::string config_path = (fs::path(dir) / "dms_config.json").string();
  const nlohmann::json config = read_json_object(config_path);
  if (config.value("format", nlohmann::json()) != "dms-adapters" || config.value("version", nlohmann::json()) != 1) {
    throw UserError(config_path, "is not the description of version 1 adapters");
  }
  for (const char* key : kSettings) {
    if (config.contains(key)) description[key] = config[key];
  }

  const auto file = SafetensorsFile::open((fs::path(dir) / "adapters.safetensors").string());
  int64_t num_parameters = 0, num_layers = 0;
  double bias_min = std::numeric_limits<double>::infinity(), bias_max = -bias_min;
  for (const SafetensorsEntry& entry : file->entries()) {
    if (entry.dtype == "F32") num_parameters += static_cast<int64_t>(entry.end - entry.begin) / 4;
    if (entry.name.ends_with("dms_proj_alpha.weight") || entry.name.ends_with("dms_neuron.index")) ++num_layers;
    if (!entry.name.ends_with(".bias")) continue;
    const at::Tensor bias_G = file->tensor(entry.name).to(at::kDouble);
    if (bias_G.numel() == 0) continue;
    bias_min = std::min(bias_min, bias_G.min().item<double>());
    bias_max = std::max(bias_max, bias_G.max().item<double>());
  }
  description["layers"] = num_layers;
  description["trained_parameters"] = num_parameters;
  // The eviction logit is alpha_scale * x - alpha_offset + bias: what a head starts from.
  if (bias_min <= bias_max) description["bias_range"] = {bias_min, bias_max};
}

void describe_checkpoint(const std::string& dir, ordered_json& description) {
  const std::string problem = checkpoint_problem(dir);
  description["integrity"] = problem.empty() ? "complete: every file is as its manifest says" : problem;
  if (problem.empty()) describe_adapters(dir, description);
}

}  // namespace dms
