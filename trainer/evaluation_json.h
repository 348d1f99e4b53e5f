// The figures of an evaluation, as `dms eval --json` writes them (keys in README.md of this folder).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "trainer/evaluate.h"

namespace dms {

struct EvaluationContext {
  std::string adapter;  // "linear" or "neuron"
  std::string adapter_bias;
  std::string model;
  int64_t step = 0;
  double target_ratio = 0.0;  // that the threshold was moved for; 0: as trained
  // The text of each sample token, in order; may be empty.
  std::vector<std::string> sample_texts;
};

// One set's or several sets' figures: pooled at the top, each set under "sets" when there are several.
std::string evaluation_json(const std::vector<std::pair<std::string, EvaluationRecord>>& sets,
                            const EvaluationContext& context);

// The pooled figures that a person wants to see, as a small table.
std::string evaluation_table(const std::vector<std::pair<std::string, EvaluationRecord>>& sets);
// How far each set's live keys are from the ratio that was asked for.
std::string drift_table(const std::vector<std::pair<std::string, EvaluationRecord>>& sets, double target_ratio);

}  // namespace dms
