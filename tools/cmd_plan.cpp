// dms plan: parse, compute, print.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "checkpoints/model_dir.h"
#include "data/staged_file.h"
#include "recipes/strict_json.h"
#include "recipes/user_error.h"
#include "tools/commands.h"
#include "tools/number_text.h"
#include "trainer/plan.h"
#include "trainer/run.h"

namespace dms {

namespace {

struct PlanFlags {
  std::string recipe, device = "this", rates_file, json;
  std::vector<std::string> overrides;
  int64_t num_ranks = 1;
};

// A file of measured rates, as `tools/gpu_check.sh` writes: what it holds replaces the published figure.
void read_rates(const std::string& path, DeviceRates& device) {
  const nlohmann::json rates = read_json_object(path);
  bool found = false;
  const auto take = [&](const char* name, double& value) {
    if (!rates.contains(name)) return;
    found = true;
    if (!rates[name].is_number() || rates[name].get<double>() <= 0.0) {
      throw UserError(path, "'" + std::string(name) + "' is " + rates[name].dump(), {"expected a positive number"});
    }
    value = rates[name].get<double>();
  };
  take("gemm_flops_per_s", device.gemm_flops_per_s);
  take("mfu", device.efficiency);
  take("memory_bytes", device.memory_bytes);
  take("all_gather_bytes_per_s", device.link_bytes_per_s);
  take("host_bytes_per_s", device.host_bytes_per_s);
  if (!found) {
    throw UserError(path, "holds no rate",
                    {"expected one of gemm_flops_per_s, mfu, memory_bytes, all_gather_bytes_per_s, host_bytes_per_s"});
  }
  device.measured = true;
  device.source = path;
}

DeviceRates device_of(const PlanFlags& flags, at::ScalarType dtype) {
  std::optional<DeviceRates> device;
  for (const DeviceRates& published : published_devices()) {
    if (published.name == flags.device) device = published;
  }
  if (!device) device = measure_this_machine(dtype, flags.num_ranks);
  if (!flags.rates_file.empty()) read_rates(flags.rates_file, *device);
  return *device;
}

nlohmann::ordered_json json_of(const Plan& plan, const Recipe& recipe, const DeviceRates& device, int64_t num_ranks) {
  const RankBytes& b = plan.per_rank;
  return {{"per_rank_bytes",
           {{"weights", b.weights},
            {"buffers", b.buffers},
            {"activations", b.activations},
            {"adapters", b.adapters},
            {"optimizer", b.optimizer},
            {"head", b.head},
            {"warm_start", b.warm_start},
            {"total", b.total}}},
          {"process_bytes", device.process_bytes},
          {"step_seconds", plan.step_seconds},
          {"compute_seconds", plan.compute_seconds},
          {"communication_seconds", plan.communication_seconds},
          {"tokens", plan.tokens},
          {"hours", plan.hours},
          {"fits", plan.fits},
          {"largest_sequence_length", plan.largest_sequence},
          {"suggestions", plan.suggestions},
          {"ranks", num_ranks},
          {"placement", name_of(recipe.trainer.placement)},
          {"activation_checkpointing", name_of(recipe.trainer.activation_checkpointing)},
          {"device",
           {{"name", device.name},
            {"gemm_flops_per_s", device.gemm_flops_per_s},
            {"efficiency", device.efficiency},
            {"memory_bytes", device.memory_bytes},
            {"link_bytes_per_s", device.link_bytes_per_s},
            {"host_bytes_per_s", device.host_bytes_per_s},
            {"measured", device.measured},
            {"source", device.source}}}};
}

void print(const Plan& plan, const Recipe& recipe, const DeviceRates& device, int64_t num_ranks) {
  std::printf("%ld rank%s on %s, placement %s, activation checkpointing %s, %s tokens a sequence\n", num_ranks,
              num_ranks == 1 ? "" : "s", device.name.c_str(), name_of(recipe.trainer.placement),
              name_of(recipe.trainer.activation_checkpointing).c_str(),
              count_text(recipe.trainer.sequence_length).c_str());
  const auto row = [](const char* name, int64_t bytes) {
    std::printf("  %-12s %12s\n", name, bytes_text(static_cast<double>(bytes)).c_str());
  };
  const RankBytes& b = plan.per_rank;
  std::printf("memory per rank\n");
  row("weights", b.weights);
  row("buffers", b.buffers);
  row("activations", b.activations);
  row("adapters", b.adapters);
  row("optimizer", b.optimizer);
  row("head", b.head);
  row("warm start", b.warm_start);
  row("peak", b.total);
  std::printf("  and %s for the process itself; head, backward pass and warm start use the same memory in turn\n",
              bytes_text(static_cast<double>(device.process_bytes)).c_str());
  std::printf("a step takes %s (computing %s, bringing weights %s at the same time), %s tokens take %s\n",
              duration_text(plan.step_seconds).c_str(), duration_text(plan.compute_seconds).c_str(),
              duration_text(plan.communication_seconds).c_str(), count_text(plan.tokens).c_str(),
              duration_text(plan.hours * 3600.0).c_str());
  std::printf("  rates %s: %s; %.0f%% of the GEMM rate assumed\n", device.measured ? "measured" : "not measured",
              device.source.c_str(), 100.0 * device.efficiency);
  std::printf("%s: %s a rank; the longest sequence that fits has %s tokens\n", plan.fits ? "fits" : "does not fit",
              bytes_text(device.memory_bytes).c_str(), count_text(plan.largest_sequence).c_str());
  for (const std::string& suggestion : plan.suggestions) std::printf("  would fit: %s\n", suggestion.c_str());
}

void run_plan(const PlanFlags& flags) {
  Recipe recipe = read_recipe(flags.recipe, flags.overrides);
  const Architecture architecture = read_architecture(recipe.model_path);
  const bool gpu = flags.device != "this";
  if (gpu && recipe.trainer.dtype == ComputeDtype::automatic) recipe.trainer.dtype = ComputeDtype::bfloat16;
  if (recipe.trainer.dtype == ComputeDtype::automatic) settle_dtype(recipe);
  const DeviceRates device = device_of(flags, scalar_type(recipe.trainer.dtype));
  settle_for_device(recipe, architecture, flags.num_ranks, device);
  const Plan plan = make_plan(recipe, architecture, flags.num_ranks, device);
  print(plan, recipe, device, flags.num_ranks);
  if (!flags.json.empty()) {
    write_file(flags.json, json_of(plan, recipe, device, flags.num_ranks).dump(2) + "\n");
  }
}

}  // namespace

void add_plan(CLI::App& program) {
  const auto flags = std::make_shared<PlanFlags>();
  std::vector<std::string> devices = {"this"};
  for (const DeviceRates& device : published_devices()) devices.push_back(device.name);
  CLI::App* command =
      program.add_subcommand("plan", "What a recipe costs: memory per rank, time, the longest sequence.");
  command->add_option("recipe", flags->recipe, "YAML recipe; of the model only config.json is read")->required();
  command->add_option("overrides", flags->overrides, "key.path=value, later ones win");
  command->add_option("--nproc", flags->num_ranks, "Ranks, one a device")
      ->check(CLI::Range(int64_t{1}, int64_t{65536}))
      ->capture_default_str();
  command->add_option("--device", flags->device, "this (measured), h100, h200 or a100 (published figures)")
      ->check(CLI::IsMember(devices))
      ->capture_default_str();
  command->add_option("--rates", flags->rates_file, "Measured rates of the device, JSON; they replace published ones")
      ->type_name("FILE");
  command->add_option("--json", flags->json, "Also write the plan to this file")->type_name("FILE");
  command->footer(
      "Example:\n  dms plan recipes/smollm2-135m.yaml trainer.sequence_length=4096 --nproc 8 --device h100");
  command->callback([flags] { run_plan(*flags); });
}

}  // namespace dms
