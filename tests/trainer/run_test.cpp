#include "trainer/run.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "checkpoints/run_dir.h"
#include "data/staged_file.h"
#include "data/token_file_writer.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_text.h"
#include "tests/support/user_error_of.h"

namespace dms {
namespace {

namespace fs = std::filesystem;
constexpr int64_t kLayers = 2, kSteps = 6;

class RunTest : public ::testing::Test {
 protected:
  RunTest() {
    write_tiny_model(directory_ / "model");
    TokenFileInfo info;
    info.vocab_size = 300;
    info.sources = {{"text", std::string(64, '0'), 1}};
    TokenFileWriter writer(directory_ / "train.h5", info);
    for (uint64_t document = 0; document < 12; ++document) {
      const std::vector<int32_t> tokens = tiny_tokens(40 + 37 * static_cast<int64_t>(document), document);
      writer.add_document(std::vector<uint32_t>(tokens.begin(), tokens.end()), 0, document + 1);
    }
    writer.finish();
  }

  Recipe recipe(AdapterKind kind = AdapterKind::linear) const {
    Recipe r;
    r.model_path = directory_ / "model";
    r.data.train = {directory_ / "train.h5"};
    r.data.attend_across_documents = false;
    r.adapter = {kind, kind == AdapterKind::neuron ? 2 : 0,
                 kind == AdapterKind::neuron ? AdapterBias::none : AdapterBias::per_head};
    r.eviction.window = 8;
    r.compression = {2.0, 4.0, 4, 1.0, CompressionCount::soft};
    r.warm_start.tokens = 4 * 48;
    r.warm_start.compression = 2.0;
    r.warm_start.fit.iterations = 20;
    r.trainer.steps = kSteps;
    r.trainer.global_batch = 3;
    r.trainer.sequence_length = 48;
    r.trainer.dtype = ComputeDtype::float32;
    r.trainer.checkpoint_every = 2;
    r.trainer.activation_checkpointing = ActivationCheckpointing::none;
    r.trainer.optimizer.learning_rate = 1e-3;
    r.trainer.optimizer.schedule = Schedule::cosine;
    return r;
  }

  std::string run_dir(const std::string& name) const { return directory_ / name; }

  // Trains until `stop_before_step` (-1: to the end); true when it was interrupted.  A fresh run asks about stopping
  // once a layer during its warm start, then once a step.
  bool run_until(const Recipe& r, const std::string& dir, int64_t stop_before_step, bool resume) const {
    int64_t next_step = resume ? list_checkpoints(dir).front().step : -kLayers;
    try {
      train(r, {.run_dir = dir, .resume = resume, .stop_requested = [&] { return next_step++ == stop_before_step; }},
            *single_rank());
    } catch (const Interrupted&) {
      return true;
    }
    return false;
  }

  static std::string file_of(const std::string& dir, int64_t step, const std::string& name) {
    return read_file(checkpoint_path(dir, step) + "/" + name);
  }

  // The log without what depends on the clock.
  static std::vector<std::string> timeless_metrics(const std::string& dir) {
    std::vector<std::string> lines;
    std::istringstream file(read_file(dir + "/metrics.jsonl"));
    for (std::string line; std::getline(file, line);) {
      auto json = nlohmann::ordered_json::parse(line);
      for (const char* key : {"tokens_per_s", "mfu", "peak_memory_bytes", "seconds", "rank_seconds",
                              "rank_data_seconds", "rank_communication_seconds", "rank_compute_seconds"}) {
        EXPECT_EQ(json.erase(key), 1U) << key;
      }
      lines.push_back(json.dump());
    }
    return lines;
  }

  static void expect_same_run(const std::string& actual, const std::string& expected) {
    EXPECT_EQ(timeless_metrics(actual), timeless_metrics(expected));
    EXPECT_EQ(timeless_metrics(actual).size(), static_cast<size_t>(kSteps));
    for (const char* name : {"adapters.safetensors", "dms_config.json", "optimizer.safetensors", "recipe.yaml"}) {
      EXPECT_EQ(file_of(actual, kSteps, name), file_of(expected, kSteps, name)) << name;
    }
  }

  const TemporaryDirectory directory_;
};

TEST_F(RunTest, ResumesToTheBitAtAnyCut) {
  for (AdapterKind kind : {AdapterKind::linear, AdapterKind::neuron}) {
    SCOPED_TRACE(static_cast<int>(kind));
    const std::string prefix = kind == AdapterKind::linear ? "linear-" : "neuron-";
    const std::string whole = run_dir(prefix + "whole");
    ASSERT_FALSE(run_until(recipe(kind), whole, -1 - kLayers, false));
    EXPECT_NE(file_of(whole, kSteps, "adapters.safetensors"), file_of(whole, 2, "adapters.safetensors"));

    const std::string cut = run_dir(prefix + "cut");  // before the first step, between checkpoints, at one
    ASSERT_TRUE(run_until(recipe(kind), cut, 0, false));
    ASSERT_TRUE(run_until(recipe(kind), cut, 3, true));
    ASSERT_TRUE(run_until(recipe(kind), cut, 4, true));
    ASSERT_FALSE(run_until(recipe(kind), cut, -1, true));
    expect_same_run(cut, whole);
  }
}

TEST_F(RunTest, ResumesFromTheNewestCheckpointThatHolds) {
  const std::string whole = run_dir("whole"), killed = run_dir("killed");
  run_until(recipe(), whole, -1 - kLayers, false);
  fs::copy(whole, killed, fs::copy_options::recursive);
  // As if the disk had lost the end: no last checkpoint, a damaged one before it, a log that is ahead of both.
  fs::remove_all(checkpoint_path(killed, kSteps));
  write_test_file(checkpoint_path(killed, 4) + "/adapters.safetensors", "torn");
  run_until(recipe(), killed, -1, true);
  expect_same_run(killed, whole);
}

TEST_F(RunTest, RecomputingActivationsChangesNoBit) {
  const std::string kept = run_dir("kept"), recomputed = run_dir("recomputed");
  Recipe r = recipe();
  run_until(r, kept, -1 - kLayers, false);
  r.trainer.activation_checkpointing = ActivationCheckpointing::full;
  run_until(r, recomputed, -1 - kLayers, false);
  EXPECT_EQ(timeless_metrics(recomputed), timeless_metrics(kept));
}

TEST_F(RunTest, AStopSavesTheStepsDoneAndSaysHowToContinue) {
  const std::string dir = run_dir("stopped");
  int64_t next_step = -kLayers;
  try {
    train(recipe(), {.run_dir = dir, .stop_requested = [&] { return next_step++ == 1; }}, *single_rank());
    FAIL() << "the stop was ignored";
  } catch (const Interrupted& stop) {
    EXPECT_STREQ(stop.what(), "stopped at step 1; --resume continues from there");
  }
  EXPECT_EQ(newest_checkpoint(dir), checkpoint_path(dir, 1));
  EXPECT_EQ(timeless_metrics(dir).size(), 1U);
}

TEST_F(RunTest, AStopDuringTheWarmStartLeavesNothing) {
  const std::string dir = run_dir("early");
  EXPECT_THROW(train(recipe(), {.run_dir = dir, .stop_requested = [] { return true; }}, *single_rank()), Interrupted);
  EXPECT_FALSE(fs::exists(dir));
}

TEST_F(RunTest, ALossThatIsNotFiniteStopsBeforeTheUpdateWithTheStateSaved) {
  const std::string dir = run_dir("diverged");
  Recipe r = recipe();
  r.compression.initial = 1.0;  // the first step has no target to miss; the second's loss is infinite
  r.compression.final = 64.0;
  r.compression.loss_weight = std::numeric_limits<double>::infinity();
  std::string message;
  try {
    train(r, {.run_dir = dir}, *single_rank());
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  EXPECT_TRUE(says(message, "step 1: the loss is inf"));
  EXPECT_TRUE(says(message, "stopped before the update"));
  EXPECT_TRUE(says(message, "try a smaller trainer.learning_rate"));
  EXPECT_EQ(newest_checkpoint(dir), checkpoint_path(dir, 1));
  EXPECT_NE(file_of(dir, 1, "optimizer.safetensors"), file_of(dir, 0, "optimizer.safetensors"));
  EXPECT_EQ(timeless_metrics(dir).size(), 1U);
}

TEST_F(RunTest, TheWarmStartMeetsItsBudgetBeforeTheFirstStep) {
  for (AdapterKind kind : {AdapterKind::linear, AdapterKind::neuron}) {
    const std::string dir = run_dir(kind == AdapterKind::linear ? "linear" : "neuron");
    Recipe r = recipe(kind);
    r.data.attend_across_documents = true;
    r.warm_start.tokens = 20 * 48;
    r.trainer.steps = 1;
    run_until(r, dir, -1 - kLayers, false);
    const double rate = nlohmann::json::parse(read_file(dir + "/metrics.jsonl")).at("eviction_rate");
    EXPECT_NEAR(rate, 0.5, 0.2) << "of 2x, on other text than it was fitted on";
  }
}

// Nothing is evicted and nothing learnt: what differs from the teacher is the part of the borrowed channels that has left
// the score, and the KL is quadratic in it.
TEST_F(RunTest, BorrowedChannelsLeaveTheScoreOverZeroingSteps) {
  Recipe r = recipe(AdapterKind::neuron);
  r.warm_start.tokens = 0;
  r.eviction.alpha_offset = 1000.0;
  r.trainer.optimizer.learning_rate = 0.0;
  const auto kl_of = [&](const std::string& dir) {
    run_until(r, dir, -1 - kLayers, false);
    std::vector<double> kl;
    for (const std::string& line : timeless_metrics(dir)) kl.push_back(nlohmann::json::parse(line).at("kl"));
    return kl;
  };
  const std::vector<double> at_once = kl_of(run_dir("at-once"));
  r.adapter.zeroing_steps = 4;
  const std::vector<double> slowly = kl_of(run_dir("slowly"));
  ASSERT_EQ(slowly.size(), static_cast<size_t>(kSteps));
  for (size_t step = 0; step < 4; ++step) {
    const double gone = static_cast<double>(step) / 4.0;
    EXPECT_NEAR(slowly[step] / at_once[step], gone * gone, 0.05) << step;
  }
  for (size_t step = 4; step < slowly.size(); ++step) EXPECT_EQ(slowly[step], at_once[step]) << step;
}

TEST_F(RunTest, KeepsOnlyTheNewestCheckpoints) {
  Recipe r = recipe();
  r.trainer.keep = 2;
  const std::string dir = run_dir("kept");
  run_until(r, dir, -1 - kLayers, false);
  std::vector<int64_t> steps;
  for (const CheckpointDir& checkpoint : list_checkpoints(dir)) steps.push_back(checkpoint.step);
  EXPECT_EQ(steps, (std::vector<int64_t>{6, 4}));
}

TEST_F(RunTest, RemovesWhatKilledWritersLeftEvenWhenNoStepIsLeft) {
  const std::string dir = run_dir("killed-at-the-end");
  run_until(recipe(), dir, -1 - kLayers, false);
  const std::vector<std::string> left{dir + "/recipe.yaml.partial.4711", dir + "/checkpoints/step-000002.removed.4711",
                                      dir + "/checkpoints/step-000008.partial.4711"};
  for (const std::string& path : left) fs::create_directories(path + "/inner");
  const std::string others = dir + "/eval.json.partial.4711";  // `dms eval --json` may be writing it
  fs::create_directories(others);
  run_until(recipe(), dir, -1, true);
  for (const std::string& path : left) EXPECT_FALSE(fs::exists(path)) << path;
  EXPECT_TRUE(fs::exists(others));
  EXPECT_EQ(list_checkpoints(dir).front().step, kSteps);
}

TEST_F(RunTest, ShardsOnAsManyRanksAsThereAreGpus) {
  Recipe r = recipe();
  const auto refusal = [&](int64_t ranks) { return user_error_of([&] { require_gpu_for_each_rank(r, ranks, 4); }); };
  r.trainer.placement = Placement::shard;
  EXPECT_EQ(refusal(4), "(no UserError)");
  EXPECT_TRUE(says(refusal(5), "5 ranks and 4 GPUs"));
  r.trainer.placement = Placement::replicate;
  EXPECT_EQ(refusal(5), "(no UserError)");
}

TEST_F(RunTest, RefusesWrongInputBeforeWritingAnything) {
  const auto refusal = [&](const Recipe& r, const std::string& dir) {
    return user_error_of([&] { train(r, {.run_dir = dir}, *single_rank()); });
  };
  Recipe r = recipe();
  fs::create_directories(run_dir("taken"));
  write_test_file(run_dir("taken") + "/recipe.yaml", dump_recipe(r));
  EXPECT_TRUE(says(refusal(r, run_dir("taken")), "already holds a run"));
  write_test_file(run_dir("file"), "");
  EXPECT_TRUE(says(refusal(r, run_dir("file")), "is not a directory"));

  TinyModel small;
  small.vocab_size = 299;
  write_tiny_model(directory_ / "small", small);
  r.model_path = directory_ / "small";
  EXPECT_TRUE(says(refusal(r, run_dir("new")), "its tokens need a vocabulary of 300, the model has 299"));
  r = recipe();
  r.trainer.sequence_length = 100000;
  EXPECT_NE(refusal(r, run_dir("new")), "(no UserError)");
  EXPECT_FALSE(fs::exists(run_dir("new")));
}

}  // namespace
}  // namespace dms
