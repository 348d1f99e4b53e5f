#include "trainer/metrics.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>
#include <vector>

#include "data/staged_file.h"
#include "recipes/user_error.h"

namespace dms {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

class MetricsLogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    run_dir_ = ::testing::TempDir() + "metrics_test." + std::to_string(::getpid());
    fs::remove_all(run_dir_);
    fs::create_directories(run_dir_);
  }
  void TearDown() override { fs::remove_all(run_dir_); }

  std::string path() const { return run_dir_ + "/metrics.jsonl"; }

  std::string contents() const {
    std::ifstream in(path(), std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  void append_raw(const std::string& bytes) const { std::ofstream(path(), std::ios::binary | std::ios::app) << bytes; }

  std::vector<int64_t> steps() const {
    std::vector<int64_t> steps;
    std::ifstream in(path());
    for (std::string line; std::getline(in, line);) steps.push_back(ordered_json::parse(line).at("step"));
    return steps;
  }

  // Steps [begin, end) whose loss is the step's number, so that a kept line can be told from a repeated one.
  void write_steps(int64_t resume_step, int64_t begin, int64_t end, double loss_offset = 0) const {
    MetricsLog log(run_dir_, resume_step);
    for (int64_t step = begin; step < end; ++step) {
      log.append({.step = step, .loss = static_cast<double>(step) + loss_offset});
    }
  }

  std::string run_dir_;
};

TEST_F(MetricsLogTest, ALineHoldsEveryFieldInTheDocumentedOrderAndReadsBackExactly) {
  MetricsLog log(run_dir_, 0);
  log.append({.step = 3,
              .loss = 0.1 + 0.2,
              .kl = 1e-17,
              .compression_loss = 3.0,
              .target_cr = 8,
              .eviction_rate = 0.875,
              .alpha_mean = 1.0 / 3,
              .grad_norm = 500,
              .lr = 3e-5,
              .tokens_per_s = 120.5,
              .mfu = 0.42,
              .peak_memory_bytes = int64_t{5} << 33,
              .seconds = 8.5,
              .rank_seconds = {8.5, 8.25},
              .rank_data_seconds = {0.5, 0.25},
              .rank_communication_seconds = {1.5, 2.0},
              .rank_compute_seconds = {6.5, 6.0}});
  const std::string text = contents();
  ASSERT_EQ(text.find('\n'), text.size() - 1);
  const ordered_json record = ordered_json::parse(text);
  const ordered_json expected = {{"step", 3},
                                 {"loss", 0.1 + 0.2},
                                 {"kl", 1e-17},
                                 {"compression_loss", 3.0},
                                 {"target_cr", 8.0},
                                 {"eviction_rate", 0.875},
                                 {"alpha_mean", 1.0 / 3},
                                 {"grad_norm", 500.0},
                                 {"lr", 3e-5},
                                 {"tokens_per_s", 120.5},
                                 {"mfu", 0.42},
                                 {"peak_memory_bytes", int64_t{5} << 33},
                                 {"seconds", 8.5},
                                 {"rank_seconds", ordered_json::array({8.5, 8.25})},
                                 {"rank_data_seconds", ordered_json::array({0.5, 0.25})},
                                 {"rank_communication_seconds", ordered_json::array({1.5, 2.0})},
                                 {"rank_compute_seconds", ordered_json::array({6.5, 6.0})}};
  EXPECT_EQ(record.dump(), expected.dump());
}

TEST_F(MetricsLogTest, ALineIsInTheFileAsSoonAsAppendReturns) {
  MetricsLog log(run_dir_, 0);
  log.append({.step = 0});
  EXPECT_EQ(steps(), (std::vector<int64_t>{0}));
  log.append({.step = 1});
  EXPECT_EQ(steps(), (std::vector<int64_t>{0, 1}));
}

TEST_F(MetricsLogTest, NumbersThatAreNotFiniteBecomeNullSoThatTheLineStaysJson) {
  MetricsLog log(run_dir_, 0);
  log.append({.step = 1, .loss = std::nan(""), .grad_norm = std::numeric_limits<double>::infinity()});
  const ordered_json record = ordered_json::parse(contents());
  EXPECT_TRUE(record.at("loss").is_null());
  EXPECT_TRUE(record.at("grad_norm").is_null());
}

TEST_F(MetricsLogTest, ResumingDropsTheStepsThatWillBeRepeatedAndKeepsTheOthersByteForByte) {
  write_steps(0, 0, 10);
  const std::string before = contents();
  write_steps(6, 6, 8, 0.5);
  const std::string after = contents();
  EXPECT_EQ(steps(), (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  const size_t kept = before.find("{\"step\":6");
  EXPECT_EQ(after.substr(0, kept), before.substr(0, kept));
  EXPECT_NE(after.find("6.5"), std::string::npos);
}

TEST_F(MetricsLogTest, AFreshStartEmptiesTheLogOfAnEarlierRunWhateverItHolds) {
  write_steps(0, 0, 3);
  append_raw("not json\n");
  write_steps(0, 0, 1);
  EXPECT_EQ(steps(), (std::vector<int64_t>{0}));
}

TEST_F(MetricsLogTest, ATornLastLineIsDroppedAtEveryCut) {
  write_steps(0, 0, 3);
  const std::string whole = contents();
  const size_t last_line = whole.find("{\"step\":2");
  for (size_t size = last_line; size < whole.size(); ++size) {
    write_file(path(), whole.substr(0, size));
    write_steps(3, 3, 4);
    ASSERT_EQ(steps(), (std::vector<int64_t>{0, 1, 3})) << "cut at byte " << size;
  }
}

TEST_F(MetricsLogTest, ALineThatIsNoRecordIsReportedWithItsNumberAndTheFileLeftAlone) {
  for (const std::string bad : {"garbage", "[1]", "{}", "{\"step\":\"1\"}", "{\"step\":1.5}", ""}) {
    write_file(path(), "{\"step\":0}\n" + bad + "\n{\"step\":2}\n");
    const std::string before = contents();
    try {
      MetricsLog log(run_dir_, 2);
      FAIL() << "accepted: " << bad;
    } catch (const UserError& error) {
      EXPECT_EQ(error.where(), path() + ":2");
      EXPECT_EQ(error.problem(), "not a record of a training step");
    }
    EXPECT_EQ(contents(), before);
  }
}

TEST_F(MetricsLogTest, WhatWasWrittenIsReadBackNullAsNan) {
  {
    MetricsLog log(run_dir_, 0);
    log.append({.step = 0, .loss = 0.1 + 0.2, .peak_memory_bytes = int64_t{5} << 33, .seconds = 2.5});
    log.append({.step = 1, .loss = std::nan("")});
  }
  append_raw("{\"step\":2,\"lo");
  const std::vector<StepMetrics> steps = read_metrics(run_dir_);
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_EQ(steps[0].loss, 0.1 + 0.2);
  EXPECT_EQ(steps[0].peak_memory_bytes, int64_t{5} << 33);
  EXPECT_EQ(steps[0].seconds, 2.5);
  EXPECT_EQ(steps[1].step, 1);
  EXPECT_TRUE(std::isnan(steps[1].loss));
}

TEST_F(MetricsLogTest, RanksTimesAreReadBackAndMayBeMissing) {
  MetricsLog(run_dir_, 0).append({.rank_seconds = {1.5, 2.5}, .rank_compute_seconds = {1.0, 2.0}});
  EXPECT_EQ(read_metrics(run_dir_)[0].rank_seconds, (std::vector<double>{1.5, 2.5}));
  EXPECT_EQ(read_metrics(run_dir_)[0].rank_compute_seconds, (std::vector<double>{1.0, 2.0}));
  ordered_json old = ordered_json::parse(contents());
  old.erase("rank_seconds");
  write_file(path(), old.dump() + "\n");
  EXPECT_TRUE(read_metrics(run_dir_)[0].rank_seconds.empty());
}

TEST(Straggler, ComputesMoreThanAFifthLongerThanTheMedianRank) {
  const auto straggler = [](std::vector<double> compute_seconds) {
    return straggler_of({.rank_compute_seconds = std::move(compute_seconds)});
  };
  EXPECT_EQ(straggler({1.0}), -1);
  EXPECT_EQ(straggler({1.0, 1.19}), -1);
  EXPECT_EQ(straggler({1.0, 1.21}), 1);
  EXPECT_EQ(straggler({1.0, 1.0, 1.5, 1.1}), 2);
  EXPECT_EQ(straggler({1.3, 1.3, 1.3, 1.0}), -1) << "one that is faster is none";
}

TEST_F(MetricsLogTest, ReadingNamesTheLineAndTheFieldThatIsWrong) {
  EXPECT_TRUE(read_metrics(run_dir_).empty());
  write_steps(0, 0, 1);
  const std::string good = contents();
  for (const auto& [from, to, field] : std::vector<std::tuple<std::string, std::string, std::string>>{
           {"\"kl\":0.0", "\"kl\":\"0\"", "kl"},
           {"\"mfu\"", "\"mfuu\"", "mfu"},
           {"bytes\":0", "bytes\":null", "peak_memory_bytes"}}) {
    std::string bad = good;
    ASSERT_NE(bad.find(from), std::string::npos) << from;
    write_file(path(), good + bad.replace(bad.find(from), from.size(), to));
    try {
      read_metrics(run_dir_);
      FAIL() << "accepted " << to;
    } catch (const UserError& error) {
      EXPECT_EQ(error.where(), path() + ":2");
      EXPECT_EQ(error.problem(), "'" + field + "' is missing or not a number");
    }
  }
}

TEST_F(MetricsLogTest, EveryStartOpensItsOwnTensorBoardFile) {
  write_steps(0, 0, 2);
  write_steps(2, 2, 4);
  EXPECT_EQ(std::distance(fs::directory_iterator(run_dir_ + "/tensorboard"), {}), 2);
}

TEST_F(MetricsLogTest, AFullDiskStopsTheRunInsteadOfLosingLines) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full on this system";
  AppendFile full("/dev/full", AppendFile::Mode::extend);
  EXPECT_THROW(full.append("x"), IoError);
}

}  // namespace
}  // namespace dms
