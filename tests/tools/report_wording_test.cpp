#include "tools/report_wording.h"

#include <gtest/gtest.h>

namespace dms {
namespace {

ReportInput good_result() {
  ReportInput input;
  input.model_name = "Tiny";
  input.has_eval = true;
  input.eval.kl_mean = 0.0875;
  input.eval.kl_mean_second_half = 0.1;
  input.eval.kv_memory_ratio = 5.21;
  input.eval.tokens = 98304;
  input.eval.sequence_length = 1024;
  input.eval.ppl_teacher = 11.83;
  input.eval.ppl_student = 12.66;
  input.eval.streaming_llm = {0.2, 0.27, 5.3, {}, {}};
  input.eval.sliding_window = {0.9, 1.2, 5.3, {}, {}};
  return input;
}

std::string result(const ReportInput& input) { return plain_text(result_sentence(input)); }
std::string comparison(const ReportInput& input) { return plain_text(verdict(input.eval)); }

TEST(ResultSentence, HoldsTheNumbersOfAGoodResult) {
  EXPECT_EQ(
      result(good_result()),
      "Tiny now keeps its key-value cache in 5.2 times less memory on 98,304 tokens of held-out text in sequences "
      "of 1,024, and its predictions differ from the original model's by 0.0875 nats per token (perplexity 11.8 "
      "before, 12.7 after).");
}

TEST(ResultSentence, SaysWhenNothingWasSavedOrMoreIsNeeded) {
  ReportInput input = good_result();
  input.eval.kv_memory_ratio = 1.01;
  EXPECT_NE(result(input).find("now needs as much memory as before for its key-value cache (ratio 1.01)"),
            std::string::npos);
  input.eval.kv_memory_ratio = 0.8;
  EXPECT_NE(result(input).find("now needs 1.2 times more memory for its key-value cache"), std::string::npos);
  EXPECT_EQ(result(input).find("less"), std::string::npos);
}

TEST(ResultSentence, LeavesOutWhatWasNotMeasured) {
  ReportInput input = good_result();
  input.eval.ppl_student = input.eval.tokens = input.eval.sequence_length = kUnknown;
  EXPECT_EQ(result(input),
            "Tiny now keeps its key-value cache in 5.2 times less memory, and its predictions differ from "
            "the original model's by 0.0875 nats per token.");
}

TEST(ResultSentence, WithoutAnEvaluationClaimsNoQuality) {
  ReportInput input;
  input.model_name = "Tiny";
  input.planned_steps = 60;
  input.metrics = {{.step = 0, .target_cr = 4, .eviction_rate = 0.5}};
  EXPECT_EQ(result(input),
            "Tiny has been trained for 1 step of the 60 planned and at the end dropped 50% of the keys "
            "that are older than the window (target 75%); how close it stays to the original has not "
            "been measured yet.");
  input.metrics.clear();
  EXPECT_EQ(result(input),
            "Tiny has no training step on record; how close it stays to the original has not been "
            "measured yet.");
  input.warm_start_tokens = 1000;
  EXPECT_NE(result(input).find("the warm start alone"), std::string::npos);
}

TEST(Verdict, ComparesSecondHalvesAndNamesBothBaselines) {
  EXPECT_EQ(
      comparison(good_result()),
      "In the second half of each sequence, where every method has to drop keys, it stays 2.7 times closer to the "
      "original than sinks + window, and 12 times closer to the original than a sliding window, with the same "
      "number of keys.");
}

TEST(Verdict, SaysThatALosingResultLosesAndWhichBaselineToUse) {
  ReportInput input = good_result();
  input.eval.kl_mean_second_half = 0.405;
  const std::string text = comparison(input);
  EXPECT_NE(text.find("1.5 times farther from the original than sinks + window, and 3.0 times closer"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("At this size sinks + window, which needs no training, is the better choice"), std::string::npos);

  input.eval.kl_mean_second_half = 2.4;
  EXPECT_NE(comparison(input).find("2.0 times farther from the original than a sliding window"), std::string::npos);
  input.eval.sliding_window.kl_mean_second_half = 0.2;
  EXPECT_NE(comparison(input).find("At this size a sliding window"), std::string::npos);
}

TEST(Verdict, ATieIsNoGain) {
  ReportInput input = good_result();
  input.eval.kl_mean_second_half = 0.265;
  const std::string text = comparison(input);
  EXPECT_NE(text.find("as close to the original as sinks + window"), std::string::npos) << text;
  EXPECT_NE(text.find("no clear gain"), std::string::npos);
}

TEST(Verdict, FallsBackToAllPositionsAndIsEmptyWithoutBaselines) {
  ReportInput input = good_result();
  input.eval.kl_mean_second_half = kUnknown;
  EXPECT_TRUE(comparison(input).starts_with("Over all positions it stays 2.3 times closer")) << comparison(input);
  input.eval.streaming_llm = {};
  EXPECT_EQ(comparison(input), "");
}

TEST(Closeness, IsTheRatioOfDivergencesInTheRightDirection) {
  EXPECT_EQ(closeness(0.1, 0.27), "2.7× closer");
  EXPECT_EQ(closeness(0.27, 0.1), "2.7× farther");
  EXPECT_EQ(closeness(0.1, 0.104), "as close");
  EXPECT_EQ(closeness(0.1, kUnknown), "");
  EXPECT_EQ(closeness(0.0, 0.1), "");
}

TEST(TrainingNote, MentionsTheWarmStartOnlyWhenThereWasOne) {
  ReportInput input;
  input.metrics = {{.step = 0}, {.step = 1}};
  input.planned_steps = 2;
  EXPECT_TRUE(training_note(input).starts_with("Only the evictor was trained")) << training_note(input);
  EXPECT_NE(training_note(input).find("2 steps. "), std::string::npos);
  input.warm_start_tokens = 65536;
  input.planned_steps = 60;
  EXPECT_TRUE(training_note(input).starts_with("A warm start fitted the evictor on 65,536 tokens"));
  EXPECT_NE(training_note(input).find("Then only the evictor"), std::string::npos);
  EXPECT_NE(training_note(input).find("2 steps of 60 planned"), std::string::npos);
}

TEST(HeadMapNote, CountsEmptyHeadsAndNamesTheFullestLayer) {
  EXPECT_EQ(head_map_note({{0.0, 0.009}, {0.5, 0.3}, {0.01, 0.1}}),
            "Numbers are percent. On average a head keeps 15.3%; 2 of 6 keep less than 1%; layer 1 keeps most, 40%.");
}

}  // namespace
}  // namespace dms
