#include "tools/report_wording.h"

#include <cmath>

#include "tools/number_text.h"

namespace dms {
namespace {

// Ratios nearer to 1 than this are called equal: they are within what another sample of text would change.
constexpr double kEqualWithin = 0.05;

std::string times(double ratio) { return significant_text(ratio, 2) + " times"; }

enum class Order { unknown, closer, equal, farther };

Order compare(double kl, double baseline_kl) {
  if (!std::isfinite(kl) || !std::isfinite(baseline_kl) || kl <= 0 || baseline_kl <= 0) return Order::unknown;
  const double ratio = baseline_kl / kl;
  if (ratio > 1 + kEqualWithin) return Order::closer;
  if (ratio < 1 - kEqualWithin) return Order::farther;
  return Order::equal;
}

// "2.7 times closer than", the number strong.
void add_comparison(Sentence& sentence, double kl, double baseline_kl) {
  switch (compare(kl, baseline_kl)) {
    case Order::closer:
      sentence.push_back({times(baseline_kl / kl) + " closer", true});
      sentence.push_back({" to the original than "});
      break;
    case Order::farther:
      sentence.push_back({times(kl / baseline_kl) + " farther", true});
      sentence.push_back({" from the original than "});
      break;
    case Order::equal:
    case Order::unknown:
      sentence.push_back({"as close", true});
      sentence.push_back({" to the original as "});
  }
}

void add_memory(Sentence& sentence, double ratio) {
  if (ratio > 1 + kEqualWithin) {
    sentence.push_back({"keeps its key-value cache in "});
    sentence.push_back({times(ratio) + " less memory", true});
  } else if (ratio < 1 - kEqualWithin) {
    sentence.push_back({"needs "});
    sentence.push_back({times(1 / ratio) + " more memory", true});
    sentence.push_back({" for its key-value cache"});
  } else {
    sentence.push_back({"needs "});
    sentence.push_back({"as much memory as before", true});
    sentence.push_back({" for its key-value cache (ratio " + significant_text(ratio) + ")"});
  }
}

Sentence untested_sentence(const ReportInput& input) {
  Sentence sentence = {{input.model_name}};
  if (!input.metrics.empty()) {
    const StepMetrics& last = input.metrics.back();
    sentence.push_back({" has been trained for "});
    sentence.push_back(
        {count_text(std::ssize(input.metrics)) + (input.metrics.size() == 1 ? " step" : " steps"), true});
    if (input.planned_steps > std::ssize(input.metrics)) {
      sentence.push_back({" of the " + count_text(input.planned_steps) + " planned"});
    }
    if (std::isfinite(last.eviction_rate)) {
      sentence.push_back({" and at the end dropped "});
      sentence.push_back({percent_text(last.eviction_rate), true});
      sentence.push_back(
          {" of the keys that are older than the window (target " + percent_text(1 - 1 / last.target_cr) + ")"});
    }
  } else if (input.warm_start_tokens > 0) {
    sentence.push_back({" has no training step on record; its evictor, if any, is the warm start alone"});
  } else {
    sentence.push_back({" has no training step on record"});
  }
  sentence.push_back({"; how close it stays to the original has not been measured yet."});
  return sentence;
}

}  // namespace

std::string plain_text(const Sentence& sentence) {
  std::string text;
  for (const Words& words : sentence) text += words.text;
  return text;
}

Sentence result_sentence(const ReportInput& input) {
  if (!input.has_eval) return untested_sentence(input);
  const EvalResult& eval = input.eval;
  Sentence sentence = {{input.model_name + " now "}};
  add_memory(sentence, eval.kv_memory_ratio);
  if (std::isfinite(eval.tokens)) {
    sentence.push_back({" on " + count_text(std::llround(eval.tokens)) + " tokens of held-out text"});
  }
  if (std::isfinite(eval.sequence_length)) {
    sentence.push_back({" in sequences of " + count_text(std::llround(eval.sequence_length))});
  }
  sentence.push_back({", and its predictions differ from the original model's by "});
  sentence.push_back({significant_text(eval.kl_mean) + " nats per token", true});
  if (std::isfinite(eval.ppl_teacher) && std::isfinite(eval.ppl_student)) {
    sentence.push_back({" (perplexity " + significant_text(eval.ppl_teacher) + " before, " +
                        significant_text(eval.ppl_student) + " after)"});
  }
  sentence.push_back({"."});
  return sentence;
}

Sentence verdict(const EvalResult& eval) {
  // Past the middle no method gets by on text that still fits its window; without that figure, all positions.
  const bool halves = std::isfinite(eval.kl_mean_second_half) &&
                      std::isfinite(eval.sliding_window.kl_mean_second_half) &&
                      std::isfinite(eval.streaming_llm.kl_mean_second_half);
  const double kl = halves ? eval.kl_mean_second_half : eval.kl_mean;
  const double streaming = halves ? eval.streaming_llm.kl_mean_second_half : eval.streaming_llm.kl_mean;
  const double sliding = halves ? eval.sliding_window.kl_mean_second_half : eval.sliding_window.kl_mean;
  const Order against_streaming = compare(kl, streaming), against_sliding = compare(kl, sliding);
  if (against_streaming == Order::unknown || against_sliding == Order::unknown) return {};

  Sentence sentence = {{halves ? "In the second half of each sequence, where every method has to drop keys, it stays "
                               : "Over all positions it stays "}};
  add_comparison(sentence, kl, streaming);
  sentence.push_back({"sinks + window, and "});
  add_comparison(sentence, kl, sliding);
  sentence.push_back({"a sliding window, with the same number of keys."});
  const bool loses = against_streaming == Order::farther || against_sliding == Order::farther;
  const bool ties = against_streaming == Order::equal || against_sliding == Order::equal;
  if (loses) {
    sentence.push_back({std::string(" At this size ") +
                        (streaming <= sliding ? "sinks + window, which needs no training, is"
                                              : "a sliding window, which needs no training, is") +
                        " the better choice for this model as it stands."});
  } else if (ties) {
    sentence.push_back({" That is no clear gain over a method that needs no training."});
  }
  return sentence;
}

std::string closeness(double kl, double baseline_kl) {
  switch (compare(kl, baseline_kl)) {
    case Order::closer:
      return significant_text(baseline_kl / kl, 2) + "× closer";
    case Order::farther:
      return significant_text(kl / baseline_kl, 2) + "× farther";
    case Order::equal:
      return "as close";
    case Order::unknown:
      break;
  }
  return "";
}

std::string training_note(const ReportInput& input) {
  std::string note;
  if (input.warm_start_tokens > 0) {
    note = "A warm start fitted the evictor on " + count_text(input.warm_start_tokens) +
           " tokens by forward passes alone, before the first step: the curves start where it ended. ";
  }
  if (input.metrics.empty()) return note + "No training step is on record.";
  note += input.warm_start_tokens > 0 ? "Then only" : "Only";
  note += " the evictor was trained, the model itself staying frozen, to imitate the uncompressed model: ";
  const int64_t steps = std::ssize(input.metrics);
  note += count_text(steps) + (steps == 1 ? " step" : " steps");
  if (input.planned_steps > steps) note += " of " + count_text(input.planned_steps) + " planned";
  if (input.tokens_per_step > 0) note += " of " + count_text(input.tokens_per_step) + " tokens";
  return note + ". KL here is measured under the soft eviction of training, so it differs from the figures above.";
}

std::string head_map_note(const std::vector<std::vector<double>>& keep_rate_LG) {
  size_t num_heads = 0, num_empty = 0, fullest_layer = 0;
  double sum = 0, fullest_mean = -1;
  for (size_t layer = 0; layer < keep_rate_LG.size(); ++layer) {
    double layer_sum = 0;
    for (const double rate : keep_rate_LG[layer]) {
      ++num_heads;
      if (rate < 0.01) ++num_empty;
      layer_sum += rate;
    }
    sum += layer_sum;
    const double mean = layer_sum / static_cast<double>(keep_rate_LG[layer].size());
    if (mean > fullest_mean) {
      fullest_mean = mean;
      fullest_layer = layer;
    }
  }
  return "Numbers are percent. On average a head keeps " + percent_text(sum / static_cast<double>(num_heads)) + "; " +
         count_text(static_cast<int64_t>(num_empty)) + " of " + count_text(static_cast<int64_t>(num_heads)) +
         " keep less than 1%; layer " + std::to_string(fullest_layer) + " keeps most, " + percent_text(fullest_mean) +
         ".";
}

}  // namespace dms
