// Runs of several ranks as their user starts them: `dms train --nproc N`, or the environment of a launcher.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "tests/support/child_process.h"
#include "tests/support/sandbox.h"
#include "tests/support/tiny_model.h"
#include "tests/tools/valid_inputs.h"

namespace dms {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Eight sequences a step, checkpoints often.
const std::string kTrain =
    "train run.yaml trainer.global_batch=8 trainer.steps=4 trainer.checkpoint_every=2 "
    "warm_start.tokens=576 trainer.placement=replicate ";

class RanksTest : public ::testing::Test {
 protected:
  RanksTest() : sandbox_(valid_files()) {}

  ChildOptions options(std::vector<std::string> environment = {}) const {
    ChildOptions child;
    child.directory = sandbox_.path();
    child.timeout_seconds = 240.0;
    child.environment = std::move(environment);
    child.environment.push_back("OMP_NUM_THREADS=1");
    return child;
  }
  ChildResult dms(const std::string& command, std::vector<std::string> environment = {}) const {
    return run_child(command_line(command), options(std::move(environment)));
  }

  // Losses and adapter of a finished run; what depends on the clock left out.
  std::string outcome(const std::string& run, int64_t step = 4) const {
    std::string text;
    std::istringstream lines(sandbox_.read(run + "/metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const auto record = nlohmann::json::parse(line);
      for (const char* key : {"step", "loss", "kl", "compression_loss", "eviction_rate", "alpha_mean", "grad_norm"}) {
        text += record.at(key).dump() + " ";
      }
      text += "\n";
    }
    const std::string checkpoint = run + "/checkpoints/step-00000" + std::to_string(step);
    return text + tensors_of(sandbox_.read(checkpoint + "/adapters.safetensors")) +
           tensors_of(sandbox_.read(checkpoint + "/optimizer.safetensors"));
  }

  // Without the header, whose metadata names the recipe.
  static std::string tensors_of(const std::string& safetensors) {
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, safetensors.data(), sizeof(header_bytes));
    return safetensors.substr(sizeof(header_bytes) + header_bytes);
  }

  std::string trained(const std::string& run, const std::string& arguments,
                      std::vector<std::string> environment = {}) const {
    const ChildResult result = dms(kTrain + "--run-dir " + run + " " + arguments, std::move(environment));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.exit_code == 0 ? outcome(run) : "";
  }

  static int count(const std::string& text, const std::string& part) {
    int found = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
    return found;
  }

  // Processes whose parent is `parent`.
  static std::vector<pid_t> children_of(pid_t parent) {
    std::vector<pid_t> found;
    for (const auto& entry : fs::directory_iterator("/proc")) {
      const std::string name = entry.path().filename().string();
      if (!std::all_of(name.begin(), name.end(), ::isdigit)) continue;
      std::ifstream file(entry.path() / "stat");
      std::string text((std::istreambuf_iterator<char>(file)), {});
      const size_t close = text.rfind(')');
      if (close == std::string::npos) continue;
      std::istringstream rest(text.substr(close + 1));
      char state = 0;
      pid_t ppid = 0;
      rest >> state >> ppid;
      if (ppid == parent && state != 'Z') found.push_back(static_cast<pid_t>(std::stol(name)));
    }
    std::sort(found.begin(), found.end());
    return found;
  }

  static std::string environment_of(pid_t process, const std::string& name) {
    std::ifstream file("/proc/" + std::to_string(process) + "/environ");
    std::string variable;
    while (std::getline(file, variable, '\0')) {
      if (variable.starts_with(name + "=")) return variable.substr(name.size() + 1);
    }
    return "";
  }

  static pid_t process_of_rank(pid_t launcher, int rank) {
    for (const pid_t child : children_of(launcher)) {
      if (environment_of(child, "RANK") == std::to_string(rank)) return child;
    }
    return -1;
  }

  Sandbox sandbox_;
};

TEST_F(RanksTest, GiveTheSameBitsWhateverTheirNumberAndThreads) {
  const std::string one = trained("run-1", "");
  ASSERT_FALSE(one.empty());
  EXPECT_EQ(trained("run-2", "--nproc 2"), one);
  EXPECT_EQ(trained("run-3", "--nproc 3", {"OMP_NUM_THREADS=2"}), one) << "shares of 2, 3 and 3 samples";
  EXPECT_EQ(trained("run-4", "--nproc 4"), one);
  EXPECT_EQ(trained("run-8", "--nproc 8"), one);
}

TEST_F(RanksTest, GiveTheSameBitsWhereverTheWeightsAre) {
  const std::string replicated = trained("replicated", "--nproc 2");
  ASSERT_FALSE(replicated.empty());
  EXPECT_EQ(trained("host", "trainer.placement=host"), replicated);
  EXPECT_EQ(trained("host-2", "trainer.placement=host --nproc 2"), replicated);
  EXPECT_EQ(trained("shard-2", "trainer.placement=shard --nproc 2"), replicated);
  EXPECT_EQ(trained("shard-4", "trainer.placement=shard --nproc 4"), replicated);
  // More ranks than the warm start has sequences: some only hold weights for the others.
  const std::string more = "warm_start.tokens=128 --nproc ";
  EXPECT_EQ(trained("shard-many", more + "4 trainer.placement=shard"), trained("few", more + "1"));
}

TEST_F(RanksTest, AnUntiedHeadTheNeuronAdapterAndASampleOfTheRowsAreSharedToo) {
  sandbox_.write("model/model.safetensors", safetensors_bytes(tiny_model_tensors({.tied_embeddings = false})));
  sandbox_.write("model/config.json", tiny_config_json({.tied_embeddings = false}));
  const std::string neuron = "adapter.kind=neuron warm_start.tokens=4608 warm_start.fit_rows=1024 ";
  const std::string whole = trained("whole", neuron);
  ASSERT_FALSE(whole.empty());
  EXPECT_EQ(trained("sharded", neuron + "trainer.placement=shard --nproc 2"), whole);
}

TEST_F(RanksTest, ALargeVocabularyIsShardedInSlices) {
  for (const bool tied : {true, false}) {
    const TinyModel model{.vocab_size = 2500, .tied_embeddings = tied};  // slices of 1024 rows
    sandbox_.write("model/model.safetensors", safetensors_bytes(tiny_model_tensors(model)));
    sandbox_.write("model/config.json", tiny_config_json(model));
    const std::string name = tied ? "tied" : "untied";
    const std::string whole = trained(name, "");
    ASSERT_FALSE(whole.empty());
    EXPECT_EQ(trained(name + "-2", "trainer.placement=shard --nproc 2"), whole);
    EXPECT_EQ(trained(name + "-3", "trainer.placement=shard --nproc 3"), whole) << "shares of 2, 3 and 3 samples";
  }
}

TEST_F(RanksTest, ResumeOnAnotherNumberOfRanksToTheBit) {
  const std::string whole = trained("whole", "");
  ASSERT_EQ(dms(kTrain + "trainer.schedule=constant --run-dir cut --nproc 2 trainer.steps=2").exit_code, 0);
  EXPECT_EQ(trained("cut", "--nproc 4 --resume"), whole);
}

TEST_F(RanksTest, OneSpeaksAndOneWritesTheRunDirectory) {
  const ChildResult four = dms(kTrain + "--run-dir four --nproc 4");
  for (const char* said : {"2 layers, 2 KV heads", "warm start: 8.0x fitted", "step 4/4"}) {
    EXPECT_EQ(count(four.err, said), 1) << said << " in\n" << four.err;
  }
  EXPECT_EQ(count(four.out, "trained; next:"), 1) << four.out;
  const std::string metrics = sandbox_.read("four/metrics.jsonl");
  EXPECT_EQ(count(metrics, "\n"), 4);
  const auto record = nlohmann::json::parse(metrics.substr(0, metrics.find('\n')));
  for (const char* key : {"rank_seconds", "rank_data_seconds", "rank_communication_seconds", "rank_compute_seconds"}) {
    EXPECT_EQ(record.at(key).size(), 4U) << key;
  }
  for (size_t r = 0; r < 4; ++r) {
    EXPECT_NEAR(record["rank_data_seconds"][r].get<double>() + record["rank_communication_seconds"][r].get<double>() +
                    record["rank_compute_seconds"][r].get<double>(),
                record["rank_seconds"][r].get<double>(), 1e-9);
  }
}

TEST_F(RanksTest, WrongInputIsSaidOnceWithExitCode2) {
  sandbox_.write("train.h5", "not a token file");
  const ChildResult result = dms(kTrain + "--run-dir run-wrong --nproc 3");
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(count(result.err, "train.h5: "), 1) << result.err;
  EXPECT_NE(result.err.find("dms train: rank "), std::string::npos) << result.err;
  EXPECT_FALSE(fs::exists(sandbox_ / "run-wrong"));
}

TEST_F(RanksTest, TooSmallABatchIsFoundBeforeAnyRankStarts) {
  const ChildResult result = dms(kTrain + "--nproc 9 --run-dir small");
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(result.err.find("trainer.global_batch (8) is less than the 9 ranks"), std::string::npos) << result.err;
}

TEST_F(RanksTest, HalfALaunchersEnvironmentIsAnError) {
  const ChildResult result = dms(kTrain + "--run-dir half", {"RANK=0"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(result.err.find("WORLD_SIZE: is not set in the environment, but RANK is"), std::string::npos) << result.err;
}

TEST_F(RanksTest, MeetThroughTheEnvironmentOfALauncher) {
  const std::string expected = trained("alone", "");
  const std::vector<std::string> common = {"OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_SIZE=2",
                                           "MASTER_PORT=" + std::to_string(20000 + getpid() % 20000)};
  std::vector<std::string> first = common, second = common;
  first.insert(first.end(), {"OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_LOCAL_RANK=0"});
  second.insert(second.end(), {"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_LOCAL_RANK=1"});
  ChildProcess rank0(command_line(kTrain + "--run-dir mpi"), options(first));
  ChildProcess rank1(command_line(kTrain + "--run-dir mpi"), options(second));
  const ChildResult end1 = rank1.wait(), end0 = rank0.wait();
  EXPECT_EQ(end0.exit_code, 0) << end0.err;
  EXPECT_EQ(end1.exit_code, 0) << end1.err;
  EXPECT_EQ(end1.out + end1.err, "") << "only rank 0 speaks";
  EXPECT_EQ(outcome("mpi"), expected);
}

// A run that goes on until it is ended.
const std::string kEndless =
    kTrain + "trainer.steps=1000000 trainer.keep=3 trainer.schedule=constant --run-dir endless ";

class FaultTest : public RanksTest {
 protected:
  std::unique_ptr<ChildProcess> started(const std::string& arguments = "") {
    auto run = std::make_unique<ChildProcess>(command_line(kEndless + "--nproc 3 " + arguments), options());
    // The third checkpoint: all ranks are in their steps.
    const auto begin = Clock::now();
    while (newest_step() < 4 && seconds_since(begin) < 120.0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return run;
  }

  // What the killed run left must continue as if nothing had happened.
  void expect_resumes() {
    const int64_t newest = newest_step();
    ASSERT_GT(newest, 0);
    const std::string bound = "trainer.steps=" + std::to_string(newest + 3) + " trainer.schedule=constant ";
    ASSERT_EQ(dms(kTrain + bound + "--run-dir endless --resume --nproc 2").exit_code, 0);
    ASSERT_EQ(dms(kTrain + bound + "--run-dir straight").exit_code, 0);
    const auto lines = [&](const std::string& run) {
      std::string text;
      std::istringstream records(sandbox_.read(run + "/metrics.jsonl"));
      for (std::string line; std::getline(records, line);) text += nlohmann::json::parse(line).at("loss").dump() + "\n";
      return text;
    };
    EXPECT_EQ(lines("endless"), lines("straight"));
  }

  int64_t newest_step() const {
    int64_t newest = -1;
    std::error_code none_yet;
    for (const auto& entry : fs::directory_iterator(sandbox_ / "endless/checkpoints", none_yet)) {
      const std::string name = entry.path().filename().string();
      if (name.size() == 11) newest = std::max<int64_t>(newest, std::stol(name.substr(5)));
    }
    return newest;
  }
};

TEST_F(FaultTest, AKilledRankEndsAllInSecondsWithItsNameFirst) {
  auto run = started();
  const pid_t launcher = static_cast<pid_t>(run->pid());
  const pid_t victim = process_of_rank(launcher, 1);
  ASSERT_GT(victim, 0);
  const auto begin = Clock::now();
  ::kill(victim, SIGKILL);
  const ChildResult end = run->wait();
  EXPECT_LT(seconds_since(begin), 10.0);
  EXPECT_EQ(end.exit_code, 1);
  const size_t message = end.err.find("dms train: ");
  ASSERT_NE(message, std::string::npos) << end.err;
  EXPECT_TRUE(end.err.substr(message).starts_with("dms train: rank 1 on ")) << end.err;
  EXPECT_NE(end.err.find("killed by signal 9 (Killed)"), std::string::npos) << end.err;
  EXPECT_EQ(end.err.find("dms train: ", message + 1), std::string::npos) << "the others have nothing to add:\n"
                                                                         << end.err;
  expect_resumes();
}

TEST_F(FaultTest, AStoppedRankIsFoundByItsSilence) {
  auto run = started("trainer.hang_seconds=4");
  const pid_t victim = process_of_rank(static_cast<pid_t>(run->pid()), 2);
  ASSERT_GT(victim, 0);
  const auto begin = Clock::now();
  ::kill(victim, SIGSTOP);
  const ChildResult end = run->wait();
  EXPECT_LT(seconds_since(begin), 25.0);
  EXPECT_EQ(end.exit_code, 1);
  EXPECT_NE(end.err.find(": lost rank 2 on "), std::string::npos) << end.err;
  EXPECT_NE(end.err.find("no sign of life for 4 s"), std::string::npos) << end.err;
  EXPECT_NE(::kill(victim, 0), 0) << "an orphan is left";
}

TEST_F(FaultTest, KillingTheLauncherLeavesNoOrphan) {
  auto run = started();
  const std::vector<pid_t> ranks = children_of(static_cast<pid_t>(run->pid()));
  ASSERT_EQ(ranks.size(), 3U);
  run->send(SIGKILL);
  run->wait();
  const auto begin = Clock::now();
  const auto alive = [&] {
    return std::any_of(ranks.begin(), ranks.end(), [](pid_t rank) {
      std::ifstream file("/proc/" + std::to_string(rank) + "/stat");
      std::string text((std::istreambuf_iterator<char>(file)), {});
      return !text.empty() && text.find(") Z") == std::string::npos;
    });
  };
  while (alive() && seconds_since(begin) < 10.0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(alive());
  expect_resumes();
}

TEST_F(FaultTest, ASignalToOneRankStopsAllAfterSaving) {
  auto run = started();
  const pid_t one = process_of_rank(static_cast<pid_t>(run->pid()), 2);
  ASSERT_GT(one, 0);
  ::kill(one, SIGTERM);
  const ChildResult end = run->wait();
  EXPECT_EQ(end.exit_code, 3) << end.err;
  EXPECT_NE(end.err.find("dms train: stopped at step "), std::string::npos) << end.err;
  const std::string said = "stopped at step " + std::to_string(newest_step());
  EXPECT_NE(end.err.find(said), std::string::npos) << said << " is saved, but:\n" << end.err;
  expect_resumes();
}

TEST_F(FaultTest, ASecondProcessDoesNotTouchTheRunDirectory) {
  auto run = started();
  const auto ranks = children_of(static_cast<pid_t>(run->pid()));
  ASSERT_EQ(ranks.size(), 3U);
  for (const pid_t rank : ranks) ::kill(rank, SIGSTOP);  // what changes now, another has changed
  const auto before = sandbox_.contents();
  std::vector<std::unique_ptr<ChildProcess>> others;
  for (const char* arguments : {"--resume --nproc 2", "--resume", ""}) {
    const std::string command = kTrain + "trainer.schedule=constant --run-dir endless " + arguments;
    others.push_back(std::make_unique<ChildProcess>(command_line(command), options()));
  }
  for (const auto& other : others) {
    const ChildResult second = other->wait();
    EXPECT_EQ(second.exit_code, 2);
    EXPECT_NE(second.err.find("endless: another process is training into it"), std::string::npos) << second.err;
  }
  EXPECT_TRUE(sandbox_.contents() == before);
  for (const pid_t rank : ranks) ::kill(rank, SIGCONT);
  run->send(SIGTERM);
  EXPECT_EQ(run->wait().exit_code, 3);
}

TEST_F(FaultTest, AFullDiskEndsTheRunWithWhatIsMissing) {
  ChildOptions small = options();
  small.file_size_limit_bytes = 3000;  // metrics.jsonl grows beyond it after some steps
  const ChildResult end = run_child(command_line(kEndless + "--nproc 2"), small);
  EXPECT_EQ(end.exit_code, 1);
  EXPECT_NE(end.err.find("dms train: rank 0 on "), std::string::npos) << end.err;
  EXPECT_NE(end.err.find("File too large"), std::string::npos) << end.err;
}

TEST_F(FaultTest, RestartsFromTheNewestCheckpoint) {
  auto run = started("--max-restarts 1");
  const pid_t victim = process_of_rank(static_cast<pid_t>(run->pid()), 0);
  ASSERT_GT(victim, 0);  // kill(-1) would reach everybody
  ::kill(victim, SIGKILL);
  EXPECT_TRUE(run->wait_for_output("restart 1 of 1")) << "not restarted";
  EXPECT_TRUE(run->wait_for_output("resuming endless at step "));
  const int64_t before = newest_step();
  const auto begin = Clock::now();
  while (newest_step() <= before && seconds_since(begin) < 60.0)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_GT(newest_step(), before) << "it did not go on";
  run->send(SIGTERM);
  EXPECT_EQ(run->wait().exit_code, 3);
  expect_resumes();
}

}  // namespace
}  // namespace dms
