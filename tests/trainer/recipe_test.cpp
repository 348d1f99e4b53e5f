#include "trainer/recipe.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "tests/support/temporary_directory.h"
#include "tests/support/tiny_model.h"
#include "tests/support/user_error_of.h"
#include "trainer/run_state.h"
#include "trainer/trained_adapter.h"

namespace dms {
namespace {

constexpr const char* kYaml =
    "model:\n"
    "  path: models/tiny\n"
    "data:\n"
    "  train: [a.h5, b.h5]\n"
    "trainer:\n"
    "  steps: 10\n"
    "  sequence_length: 128\n"
    "  dtype: float32\n"
    "  seed: 7\n"
    "warm_start:\n"
    "  tokens: 1024\n";

class RecipeTest : public ::testing::Test {
 protected:
  RecipeTest() { write_test_file(path_, kYaml); }

  Recipe read(const std::vector<std::string>& overrides = {}) const { return read_recipe(path_, overrides); }
  std::string refusal(const std::vector<std::string>& overrides) const {
    return user_error_of([&] { read(overrides); });
  }

  const TemporaryDirectory directory_;
  const std::string path_ = directory_ / "recipe.yaml";
};

TEST_F(RecipeTest, HoldsWhatTheFileSaysAndDefaultsElsewhere) {
  const Recipe recipe = read({"adapter.kind=neuron", "adapter.rank=4"});
  EXPECT_EQ(recipe.model_path, "models/tiny");
  EXPECT_EQ(recipe.data.train, (std::vector<std::string>{"a.h5", "b.h5"}));
  EXPECT_EQ(recipe.trainer.sequence_length, 128);
  EXPECT_EQ(recipe.adapter.kind, AdapterKind::neuron);
  EXPECT_EQ(recipe.adapter.rank, 4);
  EXPECT_EQ(recipe.eviction.window, EvictionOptions{}.window);
}

TEST_F(RecipeTest, IsReadBackFromItsOwnDump) {
  const Recipe recipe =
      read({"trainer.learning_rate=0.00012345678901234567", "export_targets=[hf]", "eviction.tau=0.3"});
  write_test_file(directory_ / "again.yaml", dump_recipe(recipe));
  EXPECT_EQ(dump_recipe(read_recipe(directory_ / "again.yaml", {})), dump_recipe(recipe));
  EXPECT_EQ(read_recipe(directory_ / "again.yaml", {}).trainer.optimizer.learning_rate, 0.00012345678901234567);
}

TEST_F(RecipeTest, RulesThatSpanComponentsNameTheKeysAndTheWayOut) {
  struct Rule {
    std::vector<std::string> overrides;
    std::string what, remedy;
  };
  const std::vector<Rule> rules{
      {{"model.path="}, "model.path is not set", "set it to a Hugging Face model directory"},
      {{"data.train=[]"}, "data.train is empty", "list at least one token file made by `dms prepare`"},
      {{"compression.initial=4", "compression.final=3.5"},
       "compression.final is smaller than compression.initial",
       "the target ratio can only rise"},
      {{"eviction.window=127"},
       "eviction.window (127) leaves no key to evict in a sequence of trainer.sequence_length 128",
       "make the window smaller or the sequences longer"},
      {{"adapter.rank=2"}, "adapter.rank is for the neuron adapter", "remove it or set adapter.kind: neuron"},
      {{"adapter.zero_after_rope=true"},
       "adapter.zero_after_rope and adapter.zeroing_steps are for the neuron adapter",
       "remove them or set adapter.kind: neuron"},
      {{"adapter.zeroing_steps=1"},
       "adapter.zero_after_rope and adapter.zeroing_steps are for the neuron adapter",
       "remove them or set adapter.kind: neuron"},
      {{"adapter.kind=neuron", "adapter.zeroing_steps=11"},
       "adapter.zeroing_steps is more than trainer.steps",
       "the borrowed channel must be out of the score when training ends"},
      {{"trainer.activation_checkpointing=none", "trainer.placement=shard"},
       "trainer.activation_checkpointing: none keeps every layer's weights in memory, which trainer.placement: "
       "shard is meant to avoid",
       "set trainer.activation_checkpointing to full or auto"},
      {{"trainer.activation_checkpointing=selective", "trainer.placement=host"},
       "trainer.activation_checkpointing: selective keeps every layer's weights in memory, which trainer.placement: "
       "host is meant to avoid",
       "set trainer.activation_checkpointing to full or auto"},
      {{"warm_start.tokens=127"},
       "warm_start.tokens is less than one sequence of trainer.sequence_length",
       "set it to 0 (off) or to at least the sequence length"},
      {{"warm_start.tokens=0", "trainer.steps=0"},
       "nothing to do: warm_start.tokens and trainer.steps are both 0",
       "set one of them"},
      {{"export_targets=[hf, sidcar]"}, "unknown export target 'sidcar'", "did you mean 'sidecar'?"},
      {{"export_targets=[gguf]"}, "unknown export target 'gguf'", "targets: hf, nvidia, fastdms, kvpress, sidecar"},
  };
  for (const Rule& rule : rules) {
    const std::string message = refusal(rule.overrides);
    EXPECT_TRUE(says(message, path_ + ": " + rule.what));
    EXPECT_TRUE(says(message, rule.remedy));
  }
}

TEST_F(RecipeTest, RulesAllowTheirOwnLimits) {
  EXPECT_EQ(refusal({"eviction.window=126"}), "(no UserError)");
  EXPECT_EQ(refusal({"compression.initial=3.5", "compression.final=3.5"}), "(no UserError)");
  EXPECT_EQ(refusal({"warm_start.tokens=128", "trainer.steps=0"}), "(no UserError)");
  EXPECT_EQ(refusal({"warm_start.tokens=0"}), "(no UserError)");
  EXPECT_EQ(refusal({"adapter.kind=neuron", "adapter.zero_after_rope=true", "adapter.zeroing_steps=10"}),
            "(no UserError)");
  EXPECT_EQ(refusal({"trainer.activation_checkpointing=none", "trainer.placement=replicate"}), "(no UserError)");
  EXPECT_EQ(refusal({"trainer.activation_checkpointing=full", "trainer.placement=shard"}), "(no UserError)");
}

TEST_F(RecipeTest, TheStepReadsItsPartOfTheRecipe) {
  const StepOptions step =
      step_options(read({"eviction.window=9", "compression.final=5", "distillation.temperature=2",
                         "data.attend_across_documents=false", "trainer.activation_checkpointing=none"}));
  EXPECT_EQ(step.eviction.window, 9);
  EXPECT_EQ(step.compression.final, 5.0);
  EXPECT_EQ(step.distillation.temperature, 2.0);
  EXPECT_FALSE(step.attend_across_documents);
  EXPECT_EQ(step.checkpointing, ActivationCheckpointing::none);
  EXPECT_EQ(step.seed, 7U);
}

class RecipeToResumeTest : public RecipeTest {
 protected:
  void run_with(const std::vector<std::string>& overrides) const {
    write_test_file(path_, kYaml);
    const std::string resolved = dump_recipe(read(overrides));
    std::filesystem::create_directories(run_dir_);
    write_test_file(run_dir_ + "/recipe.yaml", resolved);
  }
  Recipe resume(const std::vector<std::string>& overrides) const { return recipe_to_resume(run_dir_, read(overrides)); }
  std::string resume_refusal(const std::vector<std::string>& overrides) const {
    return user_error_of([&] { resume(overrides); });
  }
  const std::string run_dir_ = directory_ / "run";
};

TEST_F(RecipeToResumeTest, RefusesEveryChangeOfWhatAStepComputesByName) {
  const std::vector<std::string> common{"adapter.kind=neuron", "trainer.schedule=cosine"};
  run_with(common);
  std::set<std::string> changed;
  for (const std::string change : {"data.train=[a.h5]",
                                   "data.attend_across_documents=false",
                                   "adapter.kind=linear",
                                   "adapter.rank=4",
                                   "adapter.bias=none",
                                   "adapter.channel=last",
                                   "adapter.zero_after_rope=true",
                                   "adapter.zeroing_steps=5",
                                   "eviction.window=32",
                                   "eviction.decision_shift=0",
                                   "eviction.alpha_scale=10",
                                   "eviction.alpha_offset=4",
                                   "eviction.tau=0.2",
                                   "eviction.truncate_at=20",
                                   "eviction.attention=sparse",
                                   "compression.initial=2",
                                   "compression.final=9",
                                   "compression.ramp_steps=5",
                                   "compression.loss_weight=2",
                                   "compression.count=straight_through",
                                   "distillation.kl=reverse",
                                   "distillation.temperature=2",
                                   "warm_start.tokens=2048",
                                   "warm_start.compression=4",
                                   "warm_start.fit_rows=2048",
                                   "warm_start.iterations=7",
                                   "warm_start.weight_cap=9",
                                   "warm_start.weight_decay=0.5",
                                   "trainer.steps=20",
                                   "trainer.global_batch=4",
                                   "trainer.sequence_length=256",
                                   "trainer.learning_rate=0.5",
                                   "trainer.schedule=linear",
                                   "trainer.warmup_steps=3",
                                   "trainer.clip=2",
                                   "trainer.beta1=0.5",
                                   "trainer.beta2=0.5",
                                   "trainer.seed=8",
                                   "trainer.device=cuda",
                                   "trainer.dtype=bfloat16"}) {
    const std::string key = change.substr(0, change.find('='));
    changed.insert(key);
    std::vector<std::string> overrides = common;
    overrides.push_back(change);
    const std::string message = resume_refusal(overrides);
    EXPECT_TRUE(says(message, run_dir_ + ": cannot resume with a recipe that trains differently")) << change;
    EXPECT_TRUE(says(message, key + ": the run has ")) << change;
  }
  // An option that is neither above nor below is new: it belongs to one of the two.
  std::set<std::string> free;
  Recipe recipe = read();
  for (const OptionRow& row : option_rows([&](Schema& schema) { describe(schema, recipe); })) {
    if (!changed.contains(row.name)) free.insert(row.name);
  }
  EXPECT_EQ(free,
            (std::set<std::string>{"data.held_out", "export_targets", "model.path", "trainer.activation_checkpointing",
                                   "trainer.checkpoint_every", "trainer.hang_seconds", "trainer.keep",
                                   "trainer.memory_limit", "trainer.placement"}));
}

TEST_F(RecipeToResumeTest, NamesBothValuesAndEveryDifferenceAtOnce) {
  run_with({});
  const std::string message = resume_refusal({"trainer.seed=8", "eviction.window=32"});
  EXPECT_TRUE(says(message, "trainer.seed: the run has 7, asked is 8"));
  EXPECT_TRUE(says(message, "eviction.window: the run has 64, asked is 32"));
  EXPECT_TRUE(says(message, "continue with the run's own " + run_dir_ + "/recipe.yaml, or start another --run-dir"));
}

TEST_F(RecipeToResumeTest, TakesChangesThatLeaveTheStepsAlone) {
  run_with({});
  const Recipe recipe =
      resume({"data.held_out=[c.h5]", "trainer.checkpoint_every=3", "trainer.keep=2", "trainer.memory_limit=1000000",
              "trainer.activation_checkpointing=full", "trainer.placement=replicate", "trainer.hang_seconds=7",
              "model.path=elsewhere/tiny", "export_targets=[hf]"});
  EXPECT_EQ(recipe.trainer.checkpoint_every, 3);
  EXPECT_EQ(recipe.model_path, "elsewhere/tiny");
}

TEST_F(RecipeToResumeTest, MoreStepsAreNoChangeOnlyUnderAConstantLearningRate) {
  run_with({"trainer.schedule=constant"});
  EXPECT_EQ(resume({"trainer.schedule=constant", "trainer.steps=20"}).trainer.steps, 20);
  run_with({"trainer.schedule=cosine"});
  EXPECT_TRUE(says(resume_refusal({"trainer.schedule=cosine", "trainer.steps=20"}),
                   "trainer.steps: the run has 10, asked is 20"));
}

TEST_F(RecipeToResumeTest, AutoMeansWhatTheRunResolved) {
  run_with({"trainer.dtype=bfloat16"});
  EXPECT_EQ(resume({"trainer.dtype=auto"}).trainer.dtype, ComputeDtype::bfloat16);
}

// --- export_targets, before anything is trained ---

TEST(RequireExportable, NamesTheTargetAndTheOptionThatIsInItsWay) {
  Architecture a;
  for (const Family& family : families()) {
    if (family.model_type == "llama") a.family = family;
  }
  a.num_layers = 2;
  a.hidden_size = 64;
  a.num_heads = 4;
  a.num_kv_heads = 2;
  a.head_dim = 16;
  Recipe recipe;
  recipe.export_targets = {"hf", "fastdms"};
  const auto refusal = [&] { return user_error_of([&] { require_exportable(recipe, a); }); };
  EXPECT_TRUE(says(refusal(), "could not be exported to fastdms"));
  EXPECT_TRUE(says(refusal(), "adapter.kind: neuron"));
  recipe.adapter.kind = AdapterKind::neuron;
  EXPECT_TRUE(says(refusal(), "eviction.decision_shift: 0"));
  recipe.eviction.decision_shift = 0;
  EXPECT_TRUE(says(refusal(), "adapter.channel: last"));
  recipe.adapter.channel = AdapterChannel::last;
  EXPECT_TRUE(says(refusal(), "adapter.bias: none"));
  recipe.adapter.bias = AdapterBias::none;
  EXPECT_EQ(refusal(), "(no UserError)");
  recipe.export_targets.push_back("nvidia");
  EXPECT_TRUE(says(refusal(), "could not be exported to nvidia"));
}

}  // namespace
}  // namespace dms
