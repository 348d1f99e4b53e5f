// What a source in shards hands out, on a group of one: the pieces put together again are the model.
#include "trainer/sharded_weights.h"

#include <gtest/gtest.h>

#include "model/decoder.h"
#include "tests/support/tensor_comparison.h"
#include "tests/support/tiny_source.h"

namespace dms {
namespace {

constexpr int64_t kVocab = 2 * kVocabularyTile + 452;

class ShardedWeightsTest : public ::testing::TestWithParam<bool> {
 protected:
  ShardedWeightsTest() : whole_(model()), ranks_(single_rank()) {
    write_tiny_model(directory_.path(), model());
    sharded_ = std::make_unique<ShardedWeights>(open_weights(directory_.path(), at::kFloat), *ranks_);
  }
  static TinyModel model() { return {.vocab_size = kVocab, .tied_embeddings = GetParam()}; }

  TinySource whole_;
  TemporaryDirectory directory_;
  std::unique_ptr<RankGroup> ranks_;
  std::unique_ptr<ShardedWeights> sharded_;
};

TEST_P(ShardedWeightsTest, SlicesOfTheVocabularyAreNoLargerThanALayerOrATile) {
  ASSERT_EQ(sharded_->num_vocabulary_slices(), 3);
  // Up for the logits, down for their gradient, as a step walks.
  for (const int64_t i : {0, 1, 2, 2, 1, 0}) {
    const auto [begin, rows_VD] = sharded_->head_slice(i);
    EXPECT_EQ(begin, i * kVocabularyTile);
    EXPECT_EQ(rows_VD.size(0), std::min(kVocabularyTile, kVocab - begin));
    EXPECT_TRUE(is_bit_equal(rows_VD, whole_->head().slice(0, begin, begin + rows_VD.size(0))));
  }
  EXPECT_TRUE(is_bit_equal(sharded_->embedding(), whole_->embedding()));
  EXPECT_TRUE(is_bit_equal(sharded_->head(), whole_->head()));
}

TEST_P(ShardedWeightsTest, TokensOfEverySliceAreEmbedded) {
  const std::vector<std::vector<int32_t>> sequences = {
      {0, kVocab - 1, kVocabularyTile, kVocabularyTile - 1, 2 * kVocabularyTile, 5, 5}, {7}};
  const std::vector<at::Tensor> expected = embed_sequences(*whole_, sequences);
  const std::vector<at::Tensor> actual = embed_sequences(*sharded_, sequences);
  ASSERT_EQ(actual.size(), sequences.size());
  for (size_t s = 0; s < sequences.size(); ++s) EXPECT_TRUE(is_bit_equal(actual[s], expected[s])) << s;
  EXPECT_TRUE(embed_sequences(*sharded_, {}).empty());
}

TEST_P(ShardedWeightsTest, LayersInAnyOrderAreTheModels) {
  for (const int64_t layer : {0, 1, 0, 0, 1}) {
    const LayerWeights actual = sharded_->layer(layer), expected = whole_->layer(layer);
    EXPECT_TRUE(is_bit_equal(actual.q_proj, expected.q_proj)) << layer;
    EXPECT_TRUE(is_bit_equal(actual.down_proj, expected.down_proj)) << layer;
    EXPECT_FALSE(actual.q_bias.defined());
  }
}

INSTANTIATE_TEST_SUITE_P(TiedAndUntied, ShardedWeightsTest, ::testing::Bool());

}  // namespace
}  // namespace dms
