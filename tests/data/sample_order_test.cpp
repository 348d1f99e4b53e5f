#include "data/sample_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "recipes/user_error.h"

namespace dms {
namespace {

// Token i has id first + i, so a sample says by itself where it came from.
class IndexFile : public TokenFile {
 public:
  IndexFile(int32_t first, std::vector<int64_t> offsets, bool has_mask = false)
      : first_(first), offsets_(std::move(offsets)), has_mask_(has_mask) {}

  const std::string& path() const override { return path_; }
  int64_t num_tokens() const override { return offsets_.back(); }
  int64_t vocab_size() const override { return first_ + offsets_.back(); }
  const std::string& tokenizer_sha256() const override { return path_; }
  const std::vector<int64_t>& document_offsets() const override { return offsets_; }
  std::string attributes_json() const override { return "{}"; }
  std::vector<int32_t> tokens(int64_t begin, int64_t end) const override {
    std::vector<int32_t> ids(static_cast<size_t>(end - begin));
    std::iota(ids.begin(), ids.end(), first_ + static_cast<int32_t>(begin));
    return ids;
  }
  std::vector<uint8_t> loss_mask(int64_t begin, int64_t end) const override {
    std::vector<uint8_t> mask;
    for (int64_t i = begin; has_mask_ && i < end; ++i) mask.push_back((first_ + i) % 2);
    return mask;
  }

 private:
  int32_t first_;
  std::vector<int64_t> offsets_;
  bool has_mask_;
  std::string path_ = "indices.h5";
};

std::vector<std::shared_ptr<TokenFile>> two_files() {  // 37 tokens + 66 tokens, ids 0..102
  return {std::make_shared<IndexFile>(0, std::vector<int64_t>{0, 10, 10, 37}, true),
          std::make_shared<IndexFile>(37, std::vector<int64_t>{0, 1, 66})};
}

// Document beginnings in the stream of the two files, as ids.
const std::set<int32_t> kDocumentBegins = {0, 10, 37, 38};

TEST(SampleOrder, EveryEpochUsesEachTokenAtMostOnceAndAlmostAll) {
  const SampleOrder order(two_files(), 10, 7);
  ASSERT_EQ(order.samples_per_epoch(), 10);
  std::set<int32_t> first_tokens_of_epochs;
  for (int64_t epoch = 0; epoch < 20; ++epoch) {
    std::set<int32_t> seen;
    for (int64_t i = 0; i < 10; ++i) {
      const Sample sample = order.sample(epoch * 10 + i);
      ASSERT_EQ(sample.tokens.size(), 10u);
      seen.insert(sample.tokens.begin(), sample.tokens.end());
    }
    EXPECT_EQ(seen.size(), 100u) << "epoch " << epoch;
    first_tokens_of_epochs.insert(order.sample(epoch * 10).tokens[0] % 10);
  }
  EXPECT_GT(first_tokens_of_epochs.size(), 4u);  // the cutting points move
}

TEST(SampleOrder, TokensAreConsecutiveInTheRingOfAllFiles) {
  const SampleOrder order(two_files(), 10, 7);
  for (int64_t i = 0; i < 200; ++i) {
    const std::vector<int32_t> tokens = order.sample(i).tokens;
    for (size_t t = 1; t < tokens.size(); ++t) ASSERT_EQ(tokens[t], (tokens[t - 1] + 1) % 103);
  }
}

TEST(SampleOrder, DocumentOffsetsAreWhereDocumentsBegin) {
  const SampleOrder order(two_files(), 10, 7);
  int num_boundaries = 0;
  for (int64_t i = 0; i < 200; ++i) {
    const Sample sample = order.sample(i);
    std::vector<int64_t> expected = {0};
    for (int64_t t = 1; t < 10; ++t) {
      if (kDocumentBegins.count(sample.tokens[static_cast<size_t>(t)])) expected.push_back(t);
    }
    num_boundaries += static_cast<int>(expected.size()) - 1;
    expected.push_back(10);
    EXPECT_EQ(sample.document_offsets, expected) << "sample " << i;
  }
  EXPECT_GT(num_boundaries, 40);
}

TEST(SampleOrder, LossMaskFollowsItsTokensAndIsOnesWithoutAMask) {
  const SampleOrder order(two_files(), 10, 7);
  for (int64_t i = 0; i < 100; ++i) {
    const Sample sample = order.sample(i);
    ASSERT_EQ(sample.loss_mask.size(), 10u);
    for (size_t t = 0; t < 10; ++t) {
      const int32_t id = sample.tokens[t];
      EXPECT_EQ(sample.loss_mask[t], id < 37 ? id % 2 : 1);
    }
  }
}

TEST(SampleOrder, WindowLongerThanAFileSpansFiles) {
  const SampleOrder order(two_files(), 103, 1);
  const Sample sample = order.sample(5);
  EXPECT_EQ(std::set<int32_t>(sample.tokens.begin(), sample.tokens.end()).size(), 103u);
  EXPECT_EQ(sample.document_offsets.back(), 103);
}

TEST(SampleOrder, IsAFunctionOfSeedAndIndexOnly) {
  const SampleOrder forwards(two_files(), 4, 42), backwards(two_files(), 4, 42), other_seed(two_files(), 4, 43);
  std::vector<std::vector<int32_t>> samples;
  for (int64_t i = 0; i < 60; ++i) samples.push_back(forwards.sample(i).tokens);
  bool seed_matters = false;
  for (int64_t i = 59; i >= 0; --i) {
    EXPECT_EQ(backwards.sample(i).tokens, samples[static_cast<size_t>(i)]);
    seed_matters |= other_seed.sample(i).tokens != samples[static_cast<size_t>(i)];
  }
  EXPECT_TRUE(seed_matters);
}

// Written down once: runs made with an earlier build must see the same order when resumed.
TEST(SampleOrder, OrderIsTheOneOfEarlierBuilds) {
  const SampleOrder order({std::make_shared<IndexFile>(0, std::vector<int64_t>{0, 1000})}, 100, 1234);
  std::vector<int32_t> first_tokens;
  for (int64_t i = 0; i < 20; ++i) first_tokens.push_back(order.sample(i).tokens[0]);
  EXPECT_EQ(first_tokens, (std::vector<int32_t>{341, 741, 441, 541, 41,  241, 841, 941, 141, 641,
                                                512, 112, 912, 612, 312, 812, 212, 12,  412, 712}));
}

TEST(SampleOrder, FewerTokensThanOneWindowIsTheUsersMistake) {
  try {
    SampleOrder order(two_files(), 104, 1);
    FAIL();
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("103 tokens, fewer than one sequence of 104"), std::string::npos);
  }
}

TEST(EvaluationWindows, AreEvenlySpacedAndDoNotOverlap) {
  const IndexFile file(0, {0, 500, 1003});
  for (const int64_t max_tokens : {100, 999, 1003, 5000}) {
    const std::vector<Sample> windows = SampleOrder::evaluation_windows(file, 100, max_tokens);
    ASSERT_EQ(static_cast<int64_t>(windows.size()), std::min<int64_t>(max_tokens, 1003) / 100);
    std::set<int32_t> seen;
    std::vector<int32_t> gaps;
    for (size_t i = 0; i < windows.size(); ++i) {
      EXPECT_EQ(windows[i].tokens.size(), 100u);
      EXPECT_EQ(windows[i].tokens.back() - windows[i].tokens.front(), 99);
      EXPECT_EQ(windows[i].document_offsets.back(), 100);
      seen.insert(windows[i].tokens.begin(), windows[i].tokens.end());
      if (i > 0) gaps.push_back(windows[i].tokens[0] - windows[i - 1].tokens[0]);
    }
    EXPECT_EQ(seen.size(), 100 * windows.size());
    if (!gaps.empty()) {
      EXPECT_LE(*std::max_element(gaps.begin(), gaps.end()) - *std::min_element(gaps.begin(), gaps.end()), 1);
    }
  }
  EXPECT_THROW(SampleOrder::evaluation_windows(file, 1004, 5000), UserError);
  EXPECT_THROW(SampleOrder::evaluation_windows(file, 100, 99), UserError);
}

}  // namespace
}  // namespace dms
