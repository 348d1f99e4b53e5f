// The program as its user meets it: a child process, its exit code, the text on its two streams, the files it leaves.
#include <gtest/gtest.h>

#include <sstream>

#include "tests/support/child_process.h"
#include "tests/support/sandbox.h"
#include "tests/tools/bad_inputs.h"

namespace dms {
namespace {

std::vector<std::string> command_line(const std::string& command) {
  std::vector<std::string> argv = {DMS_PROGRAM};
  std::istringstream words(command);
  for (std::string word; words >> word;) argv.push_back(word);
  return argv;
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// The names that `after` has and `before` has not, or with other bytes, or the other way round.
std::string difference(const std::map<std::string, std::string>& before,
                       const std::map<std::string, std::string>& after) {
  std::string names;
  for (const auto& [name, bytes] : after) {
    const auto found = before.find(name);
    if (found == before.end()) names += " new:" + name;
    else if (found->second != bytes) names += " changed:" + name;
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
  EXPECT_TRUE(result.err.starts_with("dms")) << result.err;
  EXPECT_NE(first_line(result.err).find(input.first_line), std::string::npos) << result.err;
  EXPECT_NE(result.err.find(input.details), std::string::npos) << result.err;
  for (const char* leak : {"terminate called", "Exception raised from", "c10::", "nlohmann", "HDF5-DIAG", "std::"}) {
    EXPECT_EQ(result.err.find(leak), std::string::npos) << result.err;
  }
  EXPECT_LT(std::count(result.err.begin(), result.err.end(), '\n'), 30) << result.err;
  EXPECT_EQ(difference(before, sandbox.contents()), "");
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

TEST(Difference, NoticesNewChangedAndGoneFiles) {
  EXPECT_EQ(difference({{"a", "1"}}, {{"a", "1"}}), "");
  EXPECT_EQ(difference({{"a", "1"}}, {{"a", "2"}}), " changed:a");
  EXPECT_EQ(difference({}, {{"x.partial.7", ""}}), " new:x.partial.7");
  EXPECT_EQ(difference({{"a", "1"}}, {}), " gone:a");
}

}  // namespace
}  // namespace dms
