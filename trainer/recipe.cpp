#include "trainer/recipe.h"

#include <algorithm>

#include "checkpoints/export.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

// The targets' names, as an error lists them.
std::vector<std::string> export_target_names() {
  std::vector<std::string> names;
  for (const ExportTarget& target : export_targets()) names.push_back(target.name);
  return names;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

void describe_trainer(Schema& schema, TrainerOptions& o) {
  schema.integer("steps", o.steps, 0, int64_t{1} << 31, "optimizer steps; 0 = the warm start only");
  schema.integer("global_batch", o.global_batch, 1, 1 << 20, "sequences a step");
  schema.integer("sequence_length", o.sequence_length, 2, int64_t{1} << 24, "tokens a sequence");
  schema.real("learning_rate", o.optimizer.learning_rate, 0.0, 10.0, "Adam's peak learning rate");
  schema.choice<Schedule>(
      "schedule", o.optimizer.schedule,
      {{"constant", Schedule::constant}, {"linear", Schedule::linear}, {"cosine", Schedule::cosine}},
      "learning rate over steps; linear and cosine decay to 0");
  schema.integer("warmup_steps", o.optimizer.warmup_steps, 0, 1 << 30, "steps over which the learning rate rises");
  schema.real("clip", o.optimizer.clip, 0.0, 1e9, "global gradient norm; 0 = off");
  schema.real("beta1", o.optimizer.beta1, 0.0, 0.99999, "Adam");
  schema.real("beta2", o.optimizer.beta2, 0.0, 0.99999, "Adam");
  schema.integer("seed", o.seed, 0, int64_t{1} << 62, "of the data order and the noise");
  schema.choice<ComputeDevice>(
      "device", o.device,
      {{"auto", ComputeDevice::automatic}, {"cpu", ComputeDevice::cpu}, {"cuda", ComputeDevice::cuda}},
      "where ranks compute; cuda: one GPU a rank; auto: cuda where there is a GPU");
  schema.choice<ComputeDtype>(
      "dtype", o.dtype,
      {{"auto", ComputeDtype::automatic}, {"float32", ComputeDtype::float32}, {"bfloat16", ComputeDtype::bfloat16}},
      "of weights and activations; auto: bfloat16 where the processor computes it natively");
  schema.integer("checkpoint_every", o.checkpoint_every, 1, 1 << 30, "steps between checkpoints");
  schema.integer("keep", o.keep, 1, 1 << 20, "newest checkpoints kept");
  schema.choice<ActivationCheckpointing>(
      "activation_checkpointing", o.activation_checkpointing, activation_checkpointing_names(),
      "what the backward pass computes again: full: each layer; selective: the MLP's inner projections; none: nothing; "
      "auto: the fastest that fits memory_limit; the results are the same to the last bit");
  schema.choice<Placement>("placement", o.placement,
                           {{"auto", Placement::automatic},
                            {"replicate", Placement::replicate},
                            {"shard", Placement::shard},
                            {"host", Placement::host}},
                           "of the frozen weights. replicate: all on every rank; shard: 1/N of each layer on each of N "
                           "ranks; host: in the files' mapping, layer by layer; auto: the first of them that fits");
  schema.real("hang_seconds", o.hang_seconds, 1.0, 86400.0,
              "a rank that shows no sign of life for so long ends the run");
  schema.bytes_or_auto("memory_limit", o.memory_limit_bytes, "memory the run may use; auto: 80% of what is free");
}

[[noreturn]] void reject(const std::string& where, const std::string& what, const std::string& remedy) {
  throw UserError(where, what, {remedy});
}

}  // namespace

at::ScalarType scalar_type(ComputeDtype dtype) {
  TORCH_CHECK(dtype != ComputeDtype::automatic, "dtype: auto has not been settled");
  return dtype == ComputeDtype::bfloat16 ? at::kBFloat16 : at::kFloat;
}

void describe(Schema& schema, Recipe& r) {
  schema.section("model", "the pretrained model",
                 [&] { schema.path("path", r.model_path, "Hugging Face model directory"); });
  schema.section("data", "what to train on", [&] {
    schema.list("train", r.data.train, "token files made by `dms prepare`");
    schema.list("held_out", r.data.held_out, "token files for `dms eval`, never trained on");
    schema.flag("attend_across_documents", r.data.attend_across_documents,
                "false: attention, window and shift restart at each document of a sequence");
  });
  schema.section("adapter", "the trainable eviction logits", [&] { describe(schema, r.adapter); });
  schema.section("eviction", "the eviction rule", [&] { describe(schema, r.eviction); });
  schema.section("compression", "how far to compress, over time", [&] { describe(schema, r.compression); });
  schema.section("distillation", "the loss against the uncompressed model", [&] { describe(schema, r.distillation); });
  schema.section("warm_start", "the fit before training", [&] { describe(schema, r.warm_start); });
  schema.section("trainer", "the run", [&] { describe_trainer(schema, r.trainer); });
  schema.list("export_targets", r.export_targets, "destinations the result must fit: " + joined(export_target_names()));
}

void check_recipe(const Recipe& r, const std::string& where) {
  if (r.model_path.empty()) reject(where, "model.path is not set", "set it to a Hugging Face model directory");
  if (r.data.train.empty()) {
    reject(where, "data.train is empty", "list at least one token file made by `dms prepare`");
  }
  if (r.compression.final < r.compression.initial) {
    reject(where, "compression.final is smaller than compression.initial", "the target ratio can only rise");
  }
  if (r.eviction.window + 1 >= r.trainer.sequence_length) {
    reject(where,
           "eviction.window (" + std::to_string(r.eviction.window) +
               ") leaves no key to evict in a sequence of trainer.sequence_length " +
               std::to_string(r.trainer.sequence_length),
           "make the window smaller or the sequences longer");
  }
  if (r.adapter.kind == AdapterKind::linear && r.adapter.rank != 0) {
    reject(where, "adapter.rank is for the neuron adapter", "remove it or set adapter.kind: neuron");
  }
  if (r.adapter.kind == AdapterKind::linear && (r.adapter.zero_after_rope || r.adapter.zeroing_steps != 0)) {
    reject(where, "adapter.zero_after_rope and adapter.zeroing_steps are for the neuron adapter",
           "remove them or set adapter.kind: neuron");
  }
  if (r.adapter.zeroing_steps > r.trainer.steps) {
    reject(where, "adapter.zeroing_steps is more than trainer.steps",
           "the borrowed channel must be out of the score when training ends");
  }
  if (r.warm_start.tokens > 0 && r.warm_start.tokens < r.trainer.sequence_length) {
    reject(where, "warm_start.tokens is less than one sequence of trainer.sequence_length",
           "set it to 0 (off) or to at least the sequence length");
  }
  const ActivationCheckpointing plan = r.trainer.activation_checkpointing;
  if ((plan == ActivationCheckpointing::none || plan == ActivationCheckpointing::selective) &&
      (r.trainer.placement == Placement::shard || r.trainer.placement == Placement::host)) {
    reject(where,
           "trainer.activation_checkpointing: " + name_of(plan) +
               " keeps every layer's weights in memory, which trainer.placement: " + name_of(r.trainer.placement) +
               " is meant to avoid",
           "set trainer.activation_checkpointing to full or auto");
  }
  if (r.warm_start.tokens == 0 && r.trainer.steps == 0) {
    reject(where, "nothing to do: warm_start.tokens and trainer.steps are both 0", "set one of them");
  }
  for (const std::string& target : r.export_targets) {
    const std::vector<std::string> names = export_target_names();
    if (std::find(names.begin(), names.end(), target) == names.end()) {
      const std::string hint = did_you_mean(target, names);
      reject(where, "unknown export target '" + target + "'", hint.empty() ? "targets: " + joined(names) : hint);
    }
  }
}

Recipe read_recipe(const std::string& path, std::span<const std::string> overrides) {
  Recipe recipe;
  parse_yaml_file(path, overrides, [&](Schema& schema) { describe(schema, recipe); });
  check_recipe(recipe, path);
  return recipe;
}

Recipe parse_recipe(const std::string& name, const std::string& yaml) {
  Recipe recipe;
  parse_yaml_text(name, yaml, {}, [&](Schema& schema) { describe(schema, recipe); });
  return recipe;
}

std::string dump_recipe(Recipe recipe) {
  return dump_yaml([&](Schema& schema) { describe(schema, recipe); });
}

StepOptions step_options(const Recipe& r) {
  StepOptions options;
  options.eviction = r.eviction;
  options.compression = r.compression;
  options.distillation = r.distillation;
  options.checkpointing = r.trainer.activation_checkpointing;
  options.attend_across_documents = r.data.attend_across_documents;
  options.seed = static_cast<uint64_t>(r.trainer.seed);
  return options;
}

}  // namespace dms
