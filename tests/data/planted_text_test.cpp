#include "data/planted_text.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/data/tiny_tokenizer.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/user_error_of.h"

namespace dms {
namespace {

class PlantedTextTest : public testing::Test {
 protected:
  PlantedTextTest() : tokenizer_(Tokenizer::load(write_tokenizer(directory_.path(), tiny_tokenizer_json()))) {
    std::string text;
    for (int i = 0; i < 400; ++i) text += i % 2 == 1 ? "end\n" : "word ";
    filler_ = tokenizer_->encode(text, false);
  }
  PlantedText plant(int64_t length, int64_t facts, uint64_t seed = 1) const {
    return plant_facts(filler_, length, facts, seed, *tokenizer_);
  }

  TemporaryDirectory directory_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<int32_t> filler_;
};

TEST_F(PlantedTextTest, EachFactStandsOnceAtItsDistance) {
  const PlantedText text = plant(1200, 8);
  ASSERT_EQ(text.tokens.size(), 1200U);
  ASSERT_EQ(text.facts.size(), 8U);
  for (size_t f = 0; f < text.facts.size(); ++f) {
    const PlantedFact& fact = text.facts[f];
    EXPECT_EQ(fact.is_number, f % 2 == 1);
    std::vector<int32_t> statement = fact.question;
    statement.insert(statement.end(), fact.answer.begin(), fact.answer.end());
    const auto found = std::search(text.tokens.begin(), text.tokens.end(), statement.begin(), statement.end());
    ASSERT_NE(found, text.tokens.end());
    EXPECT_EQ(std::search(found + 1, text.tokens.end(), statement.begin(), statement.end()), text.tokens.end());
    // Asked for behind the question that follows the text.
    const auto answer_end = found - text.tokens.begin() + std::ssize(statement);
    EXPECT_EQ(fact.distance, 1200 + std::ssize(fact.question) - answer_end);
    EXPECT_NEAR(static_cast<double>(answer_end), 1200.0 * (2.0 * static_cast<double>(f) + 1) / 16, 70);
    EXPECT_EQ(tokenizer_->decode({*(found - 1)}, false), "\n") << "not in the middle of a line";
  }
  const std::string all = tokenizer_->decode(text.tokens, false);
  EXPECT_NE(all.find("\nThe code number for "), std::string::npos);
}

TEST_F(PlantedTextTest, IsAFunctionOfTheSeed) {
  EXPECT_EQ(plant(1200, 8).tokens, plant(1200, 8).tokens);
  EXPECT_NE(plant(1200, 8).tokens, plant(1200, 8, 2).tokens);
}

TEST_F(PlantedTextTest, SaysWhatDoesNotFit) {
  EXPECT_TRUE(says(user_error_of([&] { plant(100, 8); }), "--facts: 8 do not fit 100 tokens"));
  EXPECT_TRUE(says(user_error_of([&] { plant(1200, 25); }), "there are 24 names"));
  EXPECT_TRUE(says(user_error_of([&] { plant(260, 8); }), "take more than 260 tokens"));
  EXPECT_TRUE(says(user_error_of([&] { plant(5000, 8); }), "longer than the text"));
}

}  // namespace
}  // namespace dms
