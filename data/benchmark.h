// The questions of a benchmark, from the files in which their publishers distribute them (data/table_file.h), and what
// counts as an answer.  Prompts are those of the public harnesses (lighteval; simple-evals for the letters):
//   aime      AIME 2024: problem, answer (an integer)
//   gpqa      GPQA Diamond: Question, Correct Answer, Incorrect Answer 1..3
//   math      MATH-500: problem, answer
//   needles   RULER's needles in a haystack, made here (data/needles.h)
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dms {

enum class BenchmarkKind { aime, gpqa, math, needles };
// Throws UserError naming the nearest one.
BenchmarkKind benchmark_named(const std::string& name);
const std::vector<std::string>& benchmark_names();

struct BenchmarkItem {
  std::string id;                    // no two items of a benchmark share one
  std::string prompt;                // the user's turn
  std::string answer_prefix;         // what the answer is made to begin with; often empty
  std::vector<std::string> answers;  // one, or all needles
};

// Throws UserError: a column that is missing, by its name and beside those that are there; two questions with one id.
std::vector<BenchmarkItem> read_benchmark(BenchmarkKind kind, const std::string& path);

// 1 = right; needle tasks give the share that was found.  `text`: the model's answer, reasoning taken off.
double grade(BenchmarkKind kind, std::string_view text, const BenchmarkItem& item);

// What the text answers, in one spelling for all that count as the same, for a vote among samples; "" for none, and
// always for needles.
std::string given_answer(BenchmarkKind kind, std::string_view text);

}  // namespace dms
