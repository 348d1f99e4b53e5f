// The root of a recipe: the components' options summed up, and the rules that span two of them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/adapter.h"
#include "model/eviction.h"
#include "recipes/schema.h"
#include "trainer/compression.h"
#include "trainer/distill.h"
#include "trainer/optimizer.h"
#include "trainer/sharded_weights.h"
#include "trainer/step.h"
#include "trainer/warm_start.h"

namespace dms {

enum class ComputeDtype { automatic, float32, bfloat16 };
enum class ComputeDevice { automatic, cpu, cuda };

// The dtype of a settled choice (not of `automatic`).
at::ScalarType scalar_type(ComputeDtype dtype);

struct DataOptions {
  std::vector<std::string> train, held_out;
  bool attend_across_documents = true;
};

struct TrainerOptions {
  int64_t steps = 544;
  int64_t global_batch = 8;
  int64_t sequence_length = 1024;
  int64_t seed = 42;
  ComputeDevice device = ComputeDevice::automatic;
  ComputeDtype dtype = ComputeDtype::automatic;
  int64_t checkpoint_every = 34;
  int64_t keep = 5;
  ActivationCheckpointing activation_checkpointing = ActivationCheckpointing::automatic;
  Placement placement = Placement::automatic;
  int64_t memory_limit_bytes = -1;  // -1 = auto
  double hang_seconds = 60.0;
  OptimizerOptions optimizer;
};

struct Recipe {
  std::string model_path;
  DataOptions data;
  AdapterOptions adapter;
  EvictionOptions eviction;
  CompressionOptions compression;
  DistillationOptions distillation;
  WarmStartOptions warm_start;
  TrainerOptions trainer;
  std::vector<std::string> export_targets;
};
void describe(Schema& schema, Recipe& recipe);

// Reads and checks a recipe.  Throws UserError.
Recipe read_recipe(const std::string& path, std::span<const std::string> overrides);

// The same from the text of dump_recipe(); `name` stands for the file in messages.
Recipe parse_recipe(const std::string& name, const std::string& yaml);

// The rules that span components; `where` names the recipe.  Throws UserError.
void check_recipe(const Recipe& recipe, const std::string& where);

std::string dump_recipe(Recipe recipe);

// The parts of a recipe that the training step reads.
StepOptions step_options(const Recipe& recipe);

}  // namespace dms
