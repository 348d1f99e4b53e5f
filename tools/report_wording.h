// The report's sentences.  They must stay true whatever the numbers say: a result that loses to a baseline is called
// that, and what was not measured is not mentioned.
#pragma once

#include <string>
#include <vector>

#include "tools/report_input.h"

namespace dms {

struct Words {
  std::string text;
  bool strong = false;  // a number that the reader came for
};
using Sentence = std::vector<Words>;

std::string plain_text(const Sentence& sentence);

// What was done and what came out, in one sentence.
Sentence result_sentence(const ReportInput& input);

// How it compares with the baselines, second half of the sequence first; empty when the evaluation has none.
Sentence verdict(const EvalResult& eval);

// "2.7× closer", "1.3× farther", "as close"; "" when it cannot be said.  Divergences in nats per token.
std::string closeness(double kl, double baseline_kl);

// How training went: steps, tokens, and whether a warm start came first.
std::string training_note(const ReportInput& input);

// Which heads keep most and how many keep next to nothing.
std::string head_map_note(const std::vector<std::vector<double>>& keep_rate_LG);

}  // namespace dms
