#include "data/staged_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "recipes/user_error.h"
#include "tests/support/temporary_directory.h"

namespace dms {
namespace {
namespace fs = std::filesystem;

size_t num_entries(const std::string& directory) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(directory), fs::directory_iterator()));
}

TEST(Sha256, EqualsThePublishedVectors) {  // FIPS 180-4 examples
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 pieces;
  for (int i = 0; i < 1000; ++i) pieces.update(std::string(1000, 'a'));
  EXPECT_EQ(pieces.hex(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, OfAFileEqualsThatOfItsBytes) {
  TemporaryDirectory directory;
  const std::string bytes(3'000'001, 'x');
  write_file(directory / "file", bytes);
  EXPECT_EQ(sha256_file(directory / "file"), sha256_hex(bytes));
}

TEST(StagedFile, AppearsOnlyOnCommit) {
  TemporaryDirectory directory;
  {
    StagedFile file(directory / "out");
    file.write(std::string(1'000'000, 'a'));
    file.write("b");
    EXPECT_FALSE(fs::exists(directory / "out"));
    file.commit();
  }
  EXPECT_EQ(read_file(directory / "out"), std::string(1'000'000, 'a') + "b");
  EXPECT_EQ(num_entries(directory.path()), 1u);
}

TEST(StagedFile, NotCommittedLeavesTheOldFileAndNothingElse) {
  TemporaryDirectory directory;
  write_file(directory / "out", "old");
  { StagedFile(directory / "out").write("new"); }
  EXPECT_EQ(read_file(directory / "out"), "old");
  EXPECT_EQ(num_entries(directory.path()), 1u);
}

TEST(StagedFile, MissingDirectoryIsTheUsersMistake) {
  TemporaryDirectory directory;
  try {
    StagedFile file(directory / "nowhere/out");
    FAIL();
  } catch (const UserError& error) {
    EXPECT_EQ(error.problem(), "cannot be created: the directory '" + directory / "nowhere" + "' does not exist");
  }
  EXPECT_THROW(StagedFile(directory.path()), UserError);
  write_file(directory / "file", "");
  EXPECT_THROW(StagedFile(directory / "file/out"), UserError);
  EXPECT_THROW(read_file(directory / "nowhere"), UserError);
  EXPECT_THROW(read_file(directory.path()), UserError);
}

TEST(StagedFile, FullDiskIsAFailureOfTheWorldAndLeavesNothing) {
  TemporaryDirectory directory;
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{100'000, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  EXPECT_THROW(write_file(directory / "out", std::string(200'000, 'a')), IoError);
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(num_entries(directory.path()), 0u);
}

TEST(StagedDir, ReplacesAFullDirectoryWhole) {
  TemporaryDirectory directory;
  const std::string final_path = directory / "step";
  for (const std::string text : {"first", "second"}) {
    StagedDir staged(final_path + "/");
    write_file(staged.path() + "/" + text, text);
    fs::create_directory(staged.path() + "/nested");
    staged.commit();
  }
  EXPECT_EQ(read_file(final_path + "/second"), "second");
  EXPECT_FALSE(fs::exists(final_path + "/first"));
  EXPECT_EQ(num_entries(directory.path()), 1u);
}

TEST(StagedDir, IsRemovedAtOnce) {
  TemporaryDirectory directory;
  const std::string path = directory / "step";
  fs::create_directory(path);
  for (int i = 0; i < 3000; ++i) std::ofstream(path + "/" + std::to_string(i));
  std::atomic<bool> over = false, seen_in_part = false;
  std::thread watcher([&] {
    const auto is_partial = [&](int i) { return !fs::exists(path + "/" + std::to_string(i)) && fs::exists(path); };
    while (!over && !seen_in_part) seen_in_part = is_partial(0) || is_partial(1500) || is_partial(2999);
  });
  remove_dir(path);
  over = true;
  watcher.join();
  EXPECT_FALSE(seen_in_part);
  EXPECT_EQ(num_entries(directory.path()), 0u);
  EXPECT_THROW(remove_dir(path), IoError);
}

TEST(StagedDir, WhatAKilledProcessLeavesIsKnownByItsName) {
  for (const char* name : {"step-000012.partial.4711", "step-000012.removed.4711"})
    EXPECT_TRUE(is_unfinished_name(name));
  for (const char* name : {"step-000012", "partial", "removed.4711"}) EXPECT_FALSE(is_unfinished_name(name));
}

TEST(StagedDir, NotCommittedLeavesNothing) {
  TemporaryDirectory directory;
  {
    StagedDir staged(directory / "step");
    write_file(staged.path() + "/file", "text");
  }
  EXPECT_EQ(num_entries(directory.path()), 0u);
  write_file(directory / "file", "");
  EXPECT_THROW(StagedDir(directory / "file"), UserError);
  EXPECT_THROW(StagedDir(directory / "nowhere/step"), UserError);
}

}  // namespace
}  // namespace dms
