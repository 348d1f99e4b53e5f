// The program as its user meets it: a child process, its exit code, the text on its two streams, the files it leaves.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <fstream>
#include <sstream>
#include <thread>

#include "tests/support/child_process.h"
#include "tests/support/sandbox.h"
#include "tests/tools/bad_inputs.h"
#include "tests/tools/valid_inputs.h"

namespace dms {

void PrintTo(const BadInput& input, std::ostream* out) { *out << "dms " << input.command; }

namespace {

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// From the line "dms: ..." or "dms COMMAND: ..." on; what comes before it are warnings and progress.
std::string message_in(const std::string& err) {
  for (size_t begin = 0; begin < err.size(); begin = std::min(err.size(), err.find('\n', begin)) + 1) {
    const std::string line = first_line(err.substr(begin));
    const size_t name_end = line.find_first_not_of("abcdefghijklmnopqrstuvwxyz -");
    const std::string name = line.substr(0, name_end);
    if ((name == "dms" || name.starts_with("dms ")) && line.substr(name.size()).starts_with(": ")) {
      return err.substr(begin);
    }
  }
  return "";
}

// The names that `after` has and `before` has not, or with other bytes, or the other way round.
std::string difference(const std::map<std::string, std::string>& before,
                       const std::map<std::string, std::string>& after) {
  std::string names;
  for (const auto& [name, bytes] : after) {
    const auto found = before.find(name);
    if (found == before.end())
      names += " new:" + name;
    else if (found->second != bytes)
      names += " changed:" + name;
  }
  for (const auto& [name, bytes] : before) {
    if (!after.contains(name)) names += " gone:" + name;
  }
  return names;
}

class BadInputTest : public ::testing::TestWithParam<BadInput> {};

TEST_P(BadInputTest, EndsWithOneClearMessageAndLeavesNothing) {
  const BadInput& input = GetParam();
  Sandbox sandbox(valid_files());
  input.spoil(sandbox);
  const std::map<std::string, std::string> before = sandbox.contents();
  ChildOptions options = input.limits;
  options.directory = sandbox.path();
  options.environment.push_back("OMP_NUM_THREADS=1");
  const ChildResult result = run_child(command_line(input.command), options);

  EXPECT_FALSE(result.timed_out);
  EXPECT_EQ(result.signal, 0);
  EXPECT_EQ(result.exit_code, input.exit_code) << result.out << result.err;
  const std::string message = message_in(result.err);
  EXPECT_NE(first_line(message).find(input.first_line), std::string::npos) << result.err;
  EXPECT_NE(message.find(input.details), std::string::npos) << result.err;
  if (input.exit_code == 2) {
    for (const char* work : {"warm start:", "passes", "step 1/"}) {
      EXPECT_EQ(result.err.find(work), std::string::npos) << "found out only after hours of work:\n" << result.err;
    }
  }
  for (const char* leak : {"terminate called", "Exception raised from", "c10::", "nlohmann", "HDF5-DIAG", "std::"}) {
    EXPECT_EQ(result.err.find(leak), std::string::npos) << result.err;
  }
  EXPECT_LT(std::count(result.err.begin(), result.err.end(), '\n'), 30) << result.err;
  std::map<std::string, std::string> after = sandbox.contents();
  if (!input.may_leave.empty()) {
    std::erase_if(after, [&](const auto& file) { return file.first.starts_with(input.may_leave); });
  }
  EXPECT_EQ(difference(before, after), "");
}

INSTANTIATE_TEST_SUITE_P(CommandLine, BadInputTest, ::testing::ValuesIn(bad_inputs()),
                         [](const auto& info) { return info.param.name; });

TEST(BadInputTable, SaysWhatEachCaseExpects) {
  for (const BadInput& input : bad_inputs()) {
    EXPECT_FALSE(input.first_line.empty()) << input.name;
    EXPECT_TRUE(input.exit_code == 1 || input.exit_code == 2) << input.name;
  }
}

TEST(CommandLine, PrintsItsVersion) {
  const ChildResult result = run_child(command_line("--version"));
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, "dms " DMS_VERSION "\n");
}

TEST(CommandLine, EveryCommandHasHelpWithAnExample) {
  const ChildResult help = run_child(command_line("--help"));
  EXPECT_EQ(help.exit_code, 0);
  std::istringstream lines(help.out.substr(std::min(help.out.size(), help.out.find("Subcommands:"))));
  std::string line;
  std::getline(lines, line);
  int num_commands = 0;
  while (std::getline(lines, line) && line.starts_with("  ")) {
    std::istringstream words(line);
    std::string command;
    words >> command;
    const ChildResult result = run_child(command_line(command + " --help"));
    EXPECT_EQ(result.exit_code, 0) << command;
    EXPECT_NE(result.out.find("Example"), std::string::npos) << result.out;
    EXPECT_NE(result.out.find("dms " + command + " "), std::string::npos) << result.out;
    EXPECT_EQ(result.err, "");
    ++num_commands;
  }
  EXPECT_GE(num_commands, 1) << help.out;
}

TEST(CommandLine, AFullDiskBehindStandardOutputIsAFailure) {
  const ChildResult result = run_child({"sh", "-c", DMS_PROGRAM " --version > /dev/full"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(first_line(result.err), "dms: cannot write to the standard output");
}

TEST(MessageIn, StartsAtTheProgramsOwnLine) {
  EXPECT_EQ(message_in("dms: no\n  more\n"), "dms: no\n  more\n");
  EXPECT_EQ(message_in("warning: x\nstep 1\ndms train: no: a\n"), "dms train: no: a\n");
  EXPECT_EQ(message_in("dms bench train-step: no"), "dms bench train-step: no");
  EXPECT_EQ(message_in("dmsx: no\nthe dms: b\n"), "");
  EXPECT_EQ(message_in("dms train 5: no"), "");
  EXPECT_EQ(message_in(""), "");
}

TEST(CommandLine, ATerminatedTrainingSavesExitsWith3AndGoesOn) {
  Sandbox sandbox(valid_files());
  ChildOptions options;
  options.directory = sandbox.path();
  options.environment = {"OMP_NUM_THREADS=1"};
  const std::string command = "train run.yaml trainer.steps=1000000 trainer.checkpoint_every=1000000 --run-dir out";
  ChildProcess child(command_line(command), options);
  ASSERT_TRUE(child.wait_for_output("step 1/1000000"));
  child.send(SIGTERM);
  const ChildResult result = child.wait();
  EXPECT_EQ(result.exit_code, 3) << result.err;
  EXPECT_NE(message_in(result.err).find("dms train: stopped at step "), std::string::npos) << result.err;

  ChildProcess resumed(command_line(command + " --resume"), options);
  EXPECT_TRUE(resumed.wait_for_output("resuming out at step ")) << resumed.wait().err;
  resumed.send(SIGINT);
  EXPECT_EQ(resumed.wait().exit_code, 3);
}

TEST(CommandLine, WaitingThreadsSpinBrieflyOnABusyMachine) {
  Sandbox sandbox(valid_files());
  int run = 0;
  const auto spins = [&](std::vector<std::string> environment) -> std::string {
    ChildOptions options;
    options.directory = sandbox.path();
    options.environment = std::move(environment);
    ChildProcess child(command_line("train run.yaml trainer.steps=1000000 --run-dir out-" + std::to_string(++run)),
                       options);
    EXPECT_TRUE(child.wait_for_output(" parameters, "));
    std::ifstream file("/proc/" + std::to_string(child.pid()) + "/environ");
    for (std::string variable; std::getline(file, variable, '\0');) {
      if (variable.starts_with("GOMP_SPINCOUNT=")) return variable;
    }
    return "";
  };
  std::atomic<bool> over = false;
  std::thread other_program([&] {
    while (!over) continue;
  });
  if (std::thread::hardware_concurrency() > 1) EXPECT_EQ(spins({"OMP_NUM_THREADS=2"}), "GOMP_SPINCOUNT=1000");
  EXPECT_EQ(spins({"OMP_NUM_THREADS=2", "GOMP_SPINCOUNT=7"}), "GOMP_SPINCOUNT=7");
  EXPECT_EQ(spins({"OMP_NUM_THREADS=2", "OMP_WAIT_POLICY=active"}), "");
  EXPECT_EQ(spins({"OMP_NUM_THREADS=1"}), "");
  over = true;
  other_program.join();
}

TEST(Difference, NoticesNewChangedAndGoneFiles) {
  EXPECT_EQ(difference({{"a", "1"}}, {{"a", "1"}}), "");
  EXPECT_EQ(difference({{"a", "1"}}, {{"a", "2"}}), " changed:a");
  EXPECT_EQ(difference({}, {{"x.partial.7", ""}}), " new:x.partial.7");
  EXPECT_EQ(difference({{"a", "1"}}, {}), " gone:a");
}

}  // namespace
}  // namespace dms
