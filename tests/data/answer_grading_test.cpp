#include "data/answer_grading.h"

#include <gtest/gtest.h>

namespace dms {
namespace {

TEST(LastBoxed, TakesTheLastWithBalancedBraces) {
  EXPECT_EQ(last_boxed("\\boxed{1} and so \\boxed{\\frac{a}{b_{2}}} is it"), "\\frac{a}{b_{2}}");
  EXPECT_EQ(last_boxed("so \\fbox{7}."), "7");
  EXPECT_EQ(last_boxed("first \\fbox{7}, then \\boxed{8}"), "8");
  EXPECT_EQ(last_boxed("thus $\\boxed 42$."), "42");
  EXPECT_EQ(last_boxed("\\boxed{}"), "");
  EXPECT_EQ(last_boxed("\\boxed{never closed"), std::nullopt);
  EXPECT_EQ(last_boxed("no box"), std::nullopt);
}

TEST(TextAfterReasoning, IsWhatFollowsTheLastEndMark) {
  EXPECT_EQ(text_after_reasoning("<think>a</think>b", false), "b");
  EXPECT_EQ(text_after_reasoning("a</think>b", true), "b");
  EXPECT_EQ(text_after_reasoning("plain", false), "plain");
  EXPECT_EQ(text_after_reasoning("<think>it goes on", false), std::nullopt);
  EXPECT_EQ(text_after_reasoning("it goes on", true), std::nullopt);
}

TEST(GradesAsInteger, ComparesNumbersNotSpellings) {
  EXPECT_TRUE(grades_as_integer("so \\boxed{204}", "204"));
  EXPECT_TRUE(grades_as_integer("so \\boxed{33}", "033"));
  EXPECT_TRUE(grades_as_integer("so \\boxed{m+n = 33}", "33"));
  EXPECT_TRUE(grades_as_integer("the answer is $33$", "33"));
  EXPECT_TRUE(grades_as_integer("\\boxed{ 1{,}000 }", "1000"));
  EXPECT_FALSE(grades_as_integer("\\boxed{33} or rather \\boxed{34}", "33"));
  EXPECT_FALSE(grades_as_integer("\\boxed{33.5}", "33"));
  EXPECT_FALSE(grades_as_integer("the answer is 33", "33"));
  EXPECT_FALSE(grades_as_integer("", "33"));
}

TEST(ChosenLetter, FindsTheFirstAnswerMark) {
  EXPECT_EQ(chosen_letter("...\nAnswer: C"), 'C');
  EXPECT_EQ(chosen_letter("**answer:** $b$"), 'B');
  EXPECT_EQ(chosen_letter("Answer: (D)."), 'D');
  EXPECT_EQ(chosen_letter("The answer is unclear. Answer: A\nAnswer: B"), 'A');
  EXPECT_EQ(chosen_letter("hence \\boxed{\\text{C}}"), 'C');
  EXPECT_EQ(chosen_letter("Answer: Cats"), std::nullopt);
  EXPECT_EQ(chosen_letter("Answer: E"), std::nullopt);
  EXPECT_EQ(chosen_letter("I choose C"), std::nullopt);
}

TEST(NormalisedMath, TakesOneSpellingForAnother) {
  for (const auto& [a, b] :
       {std::pair{"\\dfrac12", "\\frac{1}{2}"}, std::pair{"0.5", "1/2"}, std::pair{"\\left( 1, 2 \\right)", "(1,2)"},
        std::pair{"90^\\circ", "90"}, std::pair{"x = 5", "5"}, std::pair{"\\sqrt3", "\\sqrt{3}"},
        std::pair{".25", "0.25"}, std::pair{"5 \\text{ cm}", "5"}, std::pair{"50\\%", "50"},
        std::pair{"\\frac1{72}", "\\frac{1}{72}"}, std::pair{"-3/4", "\\frac{-3}{4}"}, std::pair{"1\\!000", "1000"}}) {
    EXPECT_EQ(normalised_math(a), normalised_math(b)) << a << " and " << b;
  }
  EXPECT_NE(normalised_math("1/2"), normalised_math("2/1"));
  EXPECT_NE(normalised_math("a/b"), normalised_math("\\frac{a}{b}")) << "only integers are turned into fractions";
  EXPECT_EQ(normalised_math(""), "");
}

TEST(AnsweredMath, IsTheBoxOrTheLastLineWhicheverComesLater) {
  EXPECT_EQ(answered_math("so\nANSWER: 12"), "12");
  EXPECT_EQ(answered_math("**Answer: $\\frac12$.**\n"), "\\frac12");
  EXPECT_EQ(answered_math("\\boxed{3} was wrong.\nANSWER: 4"), "4");
  EXPECT_EQ(answered_math("ANSWER: $\\boxed{5}$"), "5");
  EXPECT_EQ(answered_math("ANSWER: 4, or rather\n\\boxed{6}"), "6");
  EXPECT_EQ(answered_math("ANSWER: 1\nANSWER: 2"), "2");
  EXPECT_EQ(answered_math("the answer: 7"), std::nullopt) << "only where it begins a line";
  EXPECT_EQ(answered_math("answer: 8, since the answer: is"), "8, since the answer: is");
  EXPECT_EQ(answered_math("ANSWER:"), std::nullopt);
  EXPECT_TRUE(grades_as_math("ANSWER: 1/2", "\\frac{1}{2}"));
}

TEST(ShareOfNeedles, CountsInAnyCase) {
  EXPECT_EQ(share_of_needles("The codes are ABC and 12.", {"abc", "12", "34", "x9"}), 0.5);
  EXPECT_EQ(share_of_needles("", {"a"}), 0.0);
}

}  // namespace
}  // namespace dms
