#include "trainer/run_state.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "checkpoints/run_dir.h"
#include "checkpoints/safetensors.h"
#include "data/staged_file.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

namespace fs = std::filesystem;
constexpr int kStateVersion = 1;

// Keys that may differ between a run and its continuation: they do not change what a step computes.
const std::vector<std::string> kFreeKeys{"data.held_out",
                                         "trainer.checkpoint_every",
                                         "trainer.keep",
                                         "trainer.memory_limit",
                                         "trainer.activation_checkpointing",
                                         "trainer.placement",
                                         "trainer.hang_seconds",
                                         "export_targets",
                                         "model.path"};

std::vector<OptionRow> rows_of(Recipe recipe) {
  return option_rows([&](Schema& schema) { describe(schema, recipe); });
}

}  // namespace

CheckpointContents checkpoint_contents(const Adapter& adapter, const Optimizer& optimizer, const Recipe& recipe,
                                       const AdapterOrigin& origin) {
  CheckpointContents contents{to_adapter_file(adapter, recipe, origin), optimizer.state(), dump_recipe(recipe)};
  for (NamedTensors* tensors : {&contents.adapter.tensors, &contents.optimizer}) {
    for (auto& [name, tensor] : *tensors) tensor = tensor.detach().clone();
  }
  return contents;
}

void write_checkpoint(const std::string& run_dir, const CheckpointContents& contents, int64_t keep) {
  const int64_t step = contents.adapter.step;
  fs::create_directories(fs::path(run_dir) / "checkpoints");
  StagedDir staged(checkpoint_path(run_dir, step));
  write_adapter_file(staged.path(), contents.adapter);
  write_safetensors(staged.path() + "/optimizer.safetensors", contents.optimizer);
  write_file(staged.path() + "/recipe.yaml", contents.recipe);
  write_file(staged.path() + "/trainer_state.json",
             nlohmann::ordered_json{{"version", kStateVersion}, {"step", step}}.dump(2) + "\n");
  write_manifest(staged.path(), step);
  staged.commit();

  const std::vector<CheckpointDir> checkpoints = list_checkpoints(run_dir);
  for (size_t i = static_cast<size_t>(keep); i < checkpoints.size(); ++i) remove_dir(checkpoints[i].path);
}

void remove_unfinished(const std::string& run_dir) {
  const auto sweep = [](const fs::path& directory, std::string_view begins_with) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(directory, ignored)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with(begins_with) && is_unfinished_name(name)) fs::remove_all(entry.path(), ignored);
    }
  };
  sweep(run_dir, "recipe.yaml");  // other commands write here, too
  sweep(fs::path(run_dir) / "checkpoints", "");
}

int64_t load_optimizer(const std::string& checkpoint_dir, Optimizer& optimizer) {
  const std::string state_path = checkpoint_dir + "/trainer_state.json";
  const auto state = nlohmann::json::parse(read_file(state_path), nullptr, false);
  if (!state.is_object() || state.value("version", 0) != kStateVersion || !state.contains("step") ||
      !state["step"].is_number_integer()) {
    throw UserError(state_path, "not a trainer state of version " + std::to_string(kStateVersion));
  }
  const auto file = SafetensorsFile::open(checkpoint_dir + "/optimizer.safetensors");
  NamedTensors tensors;
  for (const SafetensorsEntry& entry : file->entries()) tensors.emplace_back(entry.name, file->tensor(entry.name));
  optimizer.load_state(tensors);
  return state["step"].get<int64_t>();
}

Recipe recipe_to_resume(const std::string& run_dir, Recipe asked) {
  Recipe resolved = read_recipe(run_dir + "/recipe.yaml", {});
  if (asked.trainer.device == ComputeDevice::automatic) asked.trainer.device = resolved.trainer.device;
  if (asked.trainer.dtype == ComputeDtype::automatic) asked.trainer.dtype = resolved.trainer.dtype;
  const std::vector<OptionRow> before = rows_of(resolved), now = rows_of(asked);
  std::vector<std::string> differences;
  for (size_t i = 0; i < before.size(); ++i) {
    const bool free = std::find(kFreeKeys.begin(), kFreeKeys.end(), before[i].name) != kFreeKeys.end() ||
                      (before[i].name == "trainer.steps" && resolved.trainer.optimizer.schedule == Schedule::constant);
    if (!free && before[i].value != now[i].value) {
      differences.push_back(before[i].name + ": the run has " + before[i].value + ", asked is " + now[i].value);
    }
  }
  if (!differences.empty()) {
    differences.push_back("continue with the run's own " + run_dir + "/recipe.yaml, or start another --run-dir");
    throw UserError(run_dir, "cannot resume with a recipe that trains differently", differences);
  }
  return asked;
}

}  // namespace dms
