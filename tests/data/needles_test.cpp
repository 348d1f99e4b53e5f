#include "data/needles.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "recipes/user_error.h"

namespace dms {
namespace {

int64_t count_words(std::string_view text) {
  int64_t words = 1;
  for (char c : text) words += c == ' ' || c == '\n' ? 1 : 0;
  return words;
}

int64_t occurrences(const std::string& text, const std::string& part) {
  int64_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

std::string story() {
  std::string text;
  for (int i = 0; i < 300; ++i) text += "Sentence number " + std::to_string(i) + " goes on.\n";
  return text;
}

NeedleOptions options(const std::string& task) {
  return {.task = task, .haystack_text = story(), .count = 12, .num_tokens = 500, .seed = 4};
}

TEST(Needles, FillTheLengthAndHideEachAnswerOnce) {
  const std::map<std::string, size_t> num_answers{
      {"niah_single_1", 1},   {"niah_single_2", 1},   {"niah_single_3", 1},   {"niah_multikey_1", 1},
      {"niah_multikey_2", 1}, {"niah_multikey_3", 1}, {"niah_multivalue", 4}, {"niah_multiquery", 4}};
  ASSERT_EQ(needle_task_names().size(), num_answers.size());
  for (const auto& [task, count] : num_answers) {
    SCOPED_TRACE(task);
    const auto items = make_needle_items(options(task), count_words);
    ASSERT_EQ(items.size(), 12U);
    std::set<size_t> places;
    for (const BenchmarkItem& item : items) {
      const int64_t length = count_words(item.prompt + " " + item.answer_prefix);
      EXPECT_LE(length, 500);
      EXPECT_GE(length, 480);
      ASSERT_EQ(item.answers.size(), count);
      for (const std::string& answer : item.answers) {
        EXPECT_EQ(occurrences(item.prompt, " is: " + answer + "."), 1);
        EXPECT_EQ(occurrences(item.prompt, answer), 1);
        places.insert(item.prompt.find(answer));
      }
    }
    EXPECT_GT(places.size(), 6U) << "needles should be anywhere";
  }
}

TEST(Needles, AsksForTheKeysItHidAndNoOthers) {
  for (const std::string task : {"niah_multikey_1", "niah_multikey_2", "niah_multikey_3", "niah_multiquery"}) {
    SCOPED_TRACE(task);
    const BenchmarkItem item = make_needle_items(options(task), count_words).front();
    const std::string hidden = item.prompt.substr(0, item.prompt.rfind("\nWhat "));
    const std::string question = item.prompt.substr(hidden.size());
    EXPECT_GE(occurrences(hidden, " is: "), 4) << "other keys should be there as well";
    int64_t asked = 0;
    for (size_t at = hidden.find(" for "); at != std::string::npos; at = hidden.find(" for ", at + 1)) {
      const size_t begin = at + 5, end = hidden.find(" is: ", begin);
      const std::string key = hidden.substr(begin, end - begin);
      const std::string value = hidden.substr(end + 5, hidden.find('.', end) - end - 5);
      const bool in_question = question.find(key) != std::string::npos;
      asked += in_question ? 1 : 0;
      EXPECT_EQ(in_question, std::find(item.answers.begin(), item.answers.end(), value) != item.answers.end()) << key;
    }
    EXPECT_EQ(asked, std::ssize(item.answers));
  }
}

TEST(Needles, AskInRulersWords) {
  const BenchmarkItem one = make_needle_items(options("niah_single_1"), count_words).front();
  EXPECT_TRUE(
      one.prompt.starts_with("A special magic number is hidden within the following text. Make sure to memorize "
                             "it. I will quiz you about the number afterwards.\n"));
  EXPECT_TRUE(one.answer_prefix.starts_with("The special magic number for "));
  EXPECT_TRUE(one.answer_prefix.ends_with(" mentioned in the provided text is"));
  const BenchmarkItem four = make_needle_items(options("niah_multivalue"), count_words).front();
  EXPECT_TRUE(four.prompt.starts_with("Some special magic numbers are hidden"));
  EXPECT_NE(four.prompt.find("\nWhat are all the special magic numbers for "), std::string::npos);
  EXPECT_TRUE(four.answer_prefix.ends_with(" are"));
}

TEST(Needles, AreAFunctionOfTheSeed) {
  NeedleOptions asked = options("niah_multikey_2");
  const auto items = make_needle_items(asked, count_words);
  EXPECT_EQ(make_needle_items(asked, count_words)[3].prompt, items[3].prompt);
  asked.seed = 5;
  EXPECT_NE(make_needle_items(asked, count_words)[3].prompt, items[3].prompt);
}

TEST(Needles, SayWhatTheyLack) {
  NeedleOptions asked = options("niah_single_2");
  asked.haystack_text = "Too short. By far.";
  EXPECT_THROW(make_needle_items(asked, count_words), UserError);
  asked.haystack_text = "";
  EXPECT_THROW(make_needle_items(asked, count_words), UserError);
  asked = options("niah_single_1");
  asked.num_tokens = 20;
  EXPECT_THROW(make_needle_items(asked, count_words), UserError);
  EXPECT_THROW(make_needle_items(options("niah_single_9"), count_words), UserError);
}

}  // namespace
}  // namespace dms
