#include "data/benchmark.h"

#include <algorithm>
#include <map>
#include <random>

#include "data/answer_grading.h"
#include "data/table_file.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

// The columns that a benchmark is made of; the spellings of one column in different publications.
using Spellings = std::vector<std::string>;

struct Columns {
  Spellings id, question, answer;
  std::vector<std::string> wrong_answers;

  std::vector<std::string> all() const {
    std::vector<std::string> names;
    for (const Spellings* spellings : {&id, &question, &answer, &wrong_answers}) {
      names.insert(names.end(), spellings->begin(), spellings->end());
    }
    return names;
  }
};

Columns columns_of(BenchmarkKind kind) {
  if (kind == BenchmarkKind::gpqa) {
    return {{"Record ID"},
            {"Question"},
            {"Correct Answer"},
            {"Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"}};
  }
  return {{"unique_id", "id", "ID", "problem_idx"}, {"problem", "Problem", "question"}, {"answer", "Answer"}, {}};
}

const std::string* find(const TableRow& row, const Spellings& spellings) {
  for (const std::string& name : spellings) {
    if (const auto found = row.columns.find(name); found != row.columns.end()) return &found->second;
  }
  return nullptr;
}

const std::string& at(const TableRow& row, const Spellings& spellings, const Table& table) {
  if (const std::string* value = find(row, spellings)) return *value;
  std::string there;
  for (const std::string& name : table.column_names) there += (there.empty() ? "" : ", ") + name;
  std::vector<std::string> details{"columns here: " + there};
  if (std::string hint = did_you_mean(spellings.front(), table.column_names); !hint.empty()) {
    details.push_back(std::move(hint));
  }
  throw UserError(row.where, "has no column '" + spellings.front() + "'", details);
}

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r\n"), end = text.find_last_not_of(" \t\r\n");
  return begin == std::string::npos ? "" : text.substr(begin, end + 1 - begin);
}

BenchmarkItem gpqa_item(const TableRow& row, const Columns& columns, const Table& table, size_t index) {
  const std::string right = trimmed(at(row, columns.answer, table));
  std::vector<std::string> choices{right};
  for (const std::string& name : columns.wrong_answers) choices.push_back(trimmed(at(row, {name}, table)));
  // The same order in every run: where the right answer stands is a function of the item's place alone.
  std::mt19937 random(static_cast<uint32_t>(index));
  for (size_t i = choices.size() - 1; i > 0; --i) std::swap(choices[i], choices[random() % (i + 1)]);
  BenchmarkItem item;
  item.prompt =
      "Answer the following multiple choice question. The last line of your response should be of the following "
      "format: "
      "'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by step before answering.\n\n" +
      trimmed(at(row, columns.question, table)) + "\n";
  for (size_t i = 0; i < choices.size(); ++i) {
    const char letter = static_cast<char>('A' + i);
    item.prompt += std::string("\n") + letter + ") " + choices[i];
    if (choices[i] == right) item.answers = {std::string(1, letter)};
  }
  return item;
}

BenchmarkItem aime_item(const TableRow& row, const Columns& columns, const Table& table) {
  BenchmarkItem item;
  item.prompt =
      "Solve the following math problem efficiently and clearly.  The last line of your response should be of the "
      "following format: 'Therefore, the final answer is: $\\boxed{ANSWER}$. I hope it is correct' (without quotes) "
      "where "
      "ANSWER is just the final number or expression that solves the problem. Think step by step before "
      "answering.\n\n" +
      at(row, columns.question, table);
  item.answers = {at(row, columns.answer, table)};
  return item;
}

BenchmarkItem math_item(const TableRow& row, const Columns& columns, const Table& table) {
  BenchmarkItem item;
  item.prompt =
      "Solve the following problem. The final line of your response MUST be of the following format:\n\"ANSWER: "
      "$ANSWER\" (without quotes) where $ANSWER is the final answer. Think step by step before answering.\n\n" +
      at(row, columns.question, table);
  item.answers = {at(row, columns.answer, table)};
  return item;
}

}  // namespace

const std::vector<std::string>& benchmark_names() {
  static const std::vector<std::string> names{"aime", "gpqa", "math", "needles"};
  return names;
}

BenchmarkKind benchmark_named(const std::string& name) {
  const auto& names = benchmark_names();
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) {
    throw UserError("benchmark", "'" + name + "' is not known", {did_you_mean(name, names)});
  }
  return static_cast<BenchmarkKind>(found - names.begin());
}

std::vector<BenchmarkItem> read_benchmark(BenchmarkKind kind, const std::string& path) {
  const Columns columns = columns_of(kind);
  const Table table = read_table(path, columns.all());
  if (table.rows.empty()) throw UserError(path, "holds no question");
  std::vector<BenchmarkItem> items;
  std::map<std::string, std::string> places;  // of ids
  for (const TableRow& row : table.rows) {
    const size_t index = items.size();
    items.push_back(kind == BenchmarkKind::gpqa   ? gpqa_item(row, columns, table, index)
                    : kind == BenchmarkKind::aime ? aime_item(row, columns, table)
                                                  : math_item(row, columns, table));
    const std::string* id = find(row, columns.id);
    items.back().id = id != nullptr ? *id : benchmark_names()[static_cast<size_t>(kind)] + "-" + std::to_string(index);
    if (const auto [place, is_new] = places.emplace(items.back().id, row.where); !is_new) {
      throw UserError(row.where, "has the id '" + items.back().id + "' of " + place->second);
    }
  }
  return items;
}

double grade(BenchmarkKind kind, std::string_view text, const BenchmarkItem& item) {
  switch (kind) {
    case BenchmarkKind::aime:
      return grades_as_integer(text, item.answers.front()) ? 1.0 : 0.0;
    case BenchmarkKind::gpqa:
      return chosen_letter(text) == item.answers.front().front() ? 1.0 : 0.0;
    case BenchmarkKind::math:
      return grades_as_math(text, item.answers.front()) ? 1.0 : 0.0;
    case BenchmarkKind::needles:
      return share_of_needles(text, item.answers);
  }
  return 0.0;
}

std::string given_answer(BenchmarkKind kind, std::string_view text) {
  switch (kind) {
    case BenchmarkKind::aime:
      if (const auto value = answered_integer(text)) return std::to_string(*value);
      break;
    case BenchmarkKind::gpqa:
      if (const auto letter = chosen_letter(text)) return std::string(1, *letter);
      break;
    case BenchmarkKind::math:
      if (const auto value = answered_math(text)) return normalised_math(*value);
      break;
    case BenchmarkKind::needles:
      break;
  }
  return "";
}

}  // namespace dms
