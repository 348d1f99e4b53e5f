#include "checkpoints/run_dir.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/support/temporary_directory.h"
#include "tests/support/tiny_model.h"
#include "tests/support/user_error_of.h"

namespace dms {
namespace {

namespace fs = std::filesystem;

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class RunDir : public ::testing::Test {
 protected:
  std::string make_checkpoint(int64_t step) const {
    const std::string dir = checkpoint_path(run(), step);
    fs::create_directories(dir);
    write_test_file(dir + "/state.bin", "state of step " + std::to_string(step));
    write_test_file(dir + "/empty", "");
    write_manifest(dir, step);
    return dir;
  }
  const std::string& run() const { return temporary_.path(); }

  // newest_checkpoint() and what it says on stderr.
  std::string newest(std::string* warnings = nullptr) const {
    ::testing::internal::CaptureStderr();
    const std::string path = newest_checkpoint(run());
    const std::string said = ::testing::internal::GetCapturedStderr();
    if (warnings != nullptr) *warnings = said;
    return path;
  }

  TemporaryDirectory temporary_;
};

TEST_F(RunDir, TheNewestCheckpointWinsByNumberNotByName) {
  EXPECT_EQ(newest(), "");
  make_checkpoint(999999);
  make_checkpoint(20);
  EXPECT_EQ(newest(), run() + "/checkpoints/step-999999");
  const std::string last = make_checkpoint(1000000);  // sorts before step-999999 as text
  EXPECT_EQ(newest(), last);
}

TEST_F(RunDir, OnlyNamesThatThisProgramGivesCount) {
  make_checkpoint(5);
  for (const char* name : {"step-7", "step-000009.partial.123", "step-", "step--00001", "last", "step-00000x"}) {
    fs::create_directories(run() + "/checkpoints/" + name);
  }
  ASSERT_EQ(list_checkpoints(run()).size(), 1u);
  EXPECT_EQ(list_checkpoints(run())[0].step, 5);
}

TEST_F(RunDir, EveryTruncationOfTheManifestIsSkipped) {
  const std::string good = make_checkpoint(1), torn = make_checkpoint(2);
  EXPECT_EQ(newest(), torn);
  const std::string manifest = bytes_of(torn + "/manifest.json");
  for (size_t length = 0; length + 1 < manifest.size(); ++length) {  // the final newline may go
    write_test_file(torn + "/manifest.json", manifest.substr(0, length));
    ASSERT_EQ(newest(), good) << length;
  }
  fs::remove(torn + "/manifest.json");
  std::string warnings;
  EXPECT_EQ(newest(&warnings), good);
  EXPECT_TRUE(says(warnings, "warning: skipping checkpoint " + torn + ": has no manifest.json: it was not finished"));
}

TEST_F(RunDir, ATornOrDamagedFileIsNamed) {
  const std::string good = make_checkpoint(1), bad = make_checkpoint(2);
  const std::string state = bytes_of(bad + "/state.bin");
  std::string warnings;

  for (size_t i = 0; i < state.size(); ++i) {
    std::string flipped = state;
    flipped[i] ^= 1;
    write_test_file(bad + "/state.bin", flipped);
    ASSERT_EQ(newest(&warnings), good) << i;
    EXPECT_TRUE(says(warnings, "'state.bin' does not have the SHA-256 that manifest.json lists"));
  }
  write_test_file(bad + "/state.bin", state.substr(0, 3));
  EXPECT_EQ(newest(&warnings), good);
  EXPECT_TRUE(says(warnings, "'state.bin' has 3 bytes, expected 15"));
  fs::remove(bad + "/state.bin");
  EXPECT_EQ(newest(&warnings), good);
  EXPECT_TRUE(says(warnings, "'state.bin' is missing"));
  write_test_file(bad + "/state.bin", state);
  EXPECT_EQ(newest(&warnings), bad);
  EXPECT_EQ(warnings, "");
}

TEST_F(RunDir, ManifestsThatLieAreProblems) {
  const std::string dir = make_checkpoint(3);
  const auto problem = [&](const std::string& manifest) {
    write_test_file(dir + "/manifest.json", manifest);
    return checkpoint_problem(dir);
  };
  EXPECT_TRUE(says(problem(R"({"version":2,"step":3,"files":{}})"), "has version 2, expected 1"));
  EXPECT_TRUE(says(problem(R"({"step":3,"files":{}})"), "has version null"));
  EXPECT_TRUE(says(problem(R"({"version":1,"files":{}})"), "has no step"));
  EXPECT_TRUE(says(problem(R"({"version":1,"step":4,"files":{}})"), "is that of step 4"));
  EXPECT_TRUE(says(problem(R"({"version":1,"step":3,"files":{}})"), "lists no files"));
  EXPECT_TRUE(says(problem(R"({"version":1,"step":3,"files":{"a":1}})"), "lists 'a' as 1"));
  EXPECT_TRUE(says(problem(R"({"version":1,"step":3,"files":{"a":{"bytes":-1,"sha256":""}}})"), "lists 'a' as"));
  EXPECT_TRUE(says(problem(R"({"version":1,"step":3,"files":{"../a":{"bytes":0,"sha256":""}}})"), "not the name"));
  EXPECT_TRUE(says(problem(R"({"version":1,"step":3,"step":3,"files":{}})"), "appears twice"));
  EXPECT_TRUE(says(problem("[]"), "expected a JSON object"));
}

}  // namespace
}  // namespace dms
