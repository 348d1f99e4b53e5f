#include "data/benchmark.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>

#include "data/answer_grading.h"
#include "data/staged_file.h"
#include "recipes/strict_json.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

// One question as named columns, and where it stands.
struct Row {
  std::string where;
  std::map<std::string, std::string> columns;

  const std::string* find(const std::string& name) const {
    const auto found = columns.find(name);
    return found == columns.end() ? nullptr : &found->second;
  }
  const std::string& at(const std::string& name, const std::string& other = "") const {
    for (const std::string& spelling : {name, other}) {
      if (const std::string* value = find(spelling); !spelling.empty() && value != nullptr) return *value;
    }
    throw UserError(where, "has no column '" + name + "'");
  }
};

std::vector<Row> read_jsonl(const std::string& path, const std::string& text) {
  std::vector<Row> rows;
  int64_t line = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string content = text.substr(begin, end - begin);
    begin = end + 1;
    ++line;
    if (content.find_first_not_of(" \t\r") == std::string::npos) continue;
    Row row{path + ":" + std::to_string(line), {}};
    const nlohmann::json object = parse_strict_json(content, row.where);
    if (!object.is_object()) throw UserError(row.where, "is no object", {"expected one JSON object a line"});
    for (const auto& [key, value] : object.items())
      row.columns[key] = value.is_string() ? value.get<std::string>() : value.dump();
    rows.push_back(std::move(row));
  }
  return rows;
}

// RFC 4180: quoted fields may hold commas, line breaks and doubled quotes.
std::vector<Row> read_csv(const std::string& path, const std::string& text) {
  std::vector<std::vector<std::string>> records(1);
  std::vector<int64_t> lines{1};
  std::string field;
  bool quoted = false, was_quoted = false;
  int64_t line = 1;
  const auto end_field = [&] {
    records.back().push_back(std::move(field));
    field.clear();
    was_quoted = false;
  };
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\n') ++line;
    if (quoted) {
      if (c != '"') {
        field += c;
      } else if (i + 1 < text.size() && text[i + 1] == '"') {
        field += text[++i];
      } else {
        quoted = false;
      }
    } else if (c == '"' && field.empty() && !was_quoted) {
      quoted = was_quoted = true;
    } else if (c == ',') {
      end_field();
    } else if (c == '\n') {
      end_field();
      records.emplace_back();
      lines.push_back(line);
    } else if (c != '\r') {
      field += c;
    }
  }
  if (quoted) throw UserError(path + ":" + std::to_string(lines.back()), "a quoted field is not closed");
  if (!field.empty() || !records.back().empty()) end_field();
  if (records.back().empty()) records.pop_back();

  std::vector<Row> rows;
  for (size_t r = 1; r < records.size(); ++r) {
    if (records[r].size() == 1 && records[r][0].empty()) continue;
    Row row{path + ":" + std::to_string(lines[r]), {}};
    if (records[r].size() != records[0].size()) {
      throw UserError(row.where, "has " + std::to_string(records[r].size()) + " fields",
                      {"the header has " + std::to_string(records[0].size())});
    }
    for (size_t c = 0; c < records[0].size(); ++c) row.columns[records[0][c]] = records[r][c];
    rows.push_back(std::move(row));
  }
  return rows;
}

BenchmarkItem gpqa_item(const Row& row, size_t index) {
  std::vector<std::string> choices{row.at("Correct Answer"), row.at("Incorrect Answer 1"), row.at("Incorrect Answer 2"),
                                   row.at("Incorrect Answer 3")};
  // The same order in every run: where the right answer stands is a function of the item's place alone.
  std::mt19937 random(static_cast<uint32_t>(index));
  for (size_t i = choices.size() - 1; i > 0; --i) std::swap(choices[i], choices[random() % (i + 1)]);
  BenchmarkItem item;
  const std::string* id = row.find("Record ID");
  item.id = id != nullptr ? *id : "gpqa-" + std::to_string(index);
  item.prompt =
      "Answer the following multiple choice question. Think step by step. The last line of your answer should be "
      "'Answer: X', where X is one of A, B, C, D.\n\n" +
      row.at("Question") + "\n";
  for (size_t i = 0; i < choices.size(); ++i) {
    const char letter = static_cast<char>('A' + i);
    item.prompt += std::string("\n") + letter + ") " + choices[i];
    if (choices[i] == row.at("Correct Answer")) item.answers = {std::string(1, letter)};
  }
  return item;
}

BenchmarkItem math_item(const Row& row, size_t index, const std::string& prefix) {
  BenchmarkItem item;
  const std::string* id = row.find("unique_id") != nullptr ? row.find("unique_id")
                          : row.find("id") != nullptr      ? row.find("id")
                                                           : row.find("ID");
  item.id = id != nullptr ? *id : prefix + std::to_string(index);
  item.prompt =
      row.at("problem", "Problem") + "\n\nPlease reason step by step, and put your final answer within \\boxed{}.";
  item.answers = {row.at("answer", "Answer")};
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
  const std::string text = read_file(path);
  if (text.starts_with("PAR1")) {
    throw UserError(path, "is a Parquet file",
                    {"python3 -c \"import pandas, sys; pandas.read_parquet(sys.argv[1]).to_json(sys.argv[2], "
                     "orient='records', lines=True)\" IN.parquet OUT.jsonl"});
  }
  const std::vector<Row> rows = path.ends_with(".csv") ? read_csv(path, text) : read_jsonl(path, text);
  if (rows.empty()) throw UserError(path, "holds no question");
  std::vector<BenchmarkItem> items;
  for (size_t i = 0; i < rows.size(); ++i) {
    items.push_back(kind == BenchmarkKind::gpqa
                        ? gpqa_item(rows[i], i)
                        : math_item(rows[i], i, kind == BenchmarkKind::aime ? "aime-" : "math-"));
  }
  return items;
}

std::vector<BenchmarkItem> make_needle_items(const NeedleOptions& options,
                                             const std::function<int64_t(std::string_view)>& count_tokens) {
  // The repeated noise of RULER's first single-needle task.
  static const std::string kNoise =
      "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n";
  static const std::vector<std::string> kAdjectives{"amber",  "brave",  "calm", "distant", "eager", "faint",
                                                    "gentle", "hollow", "icy",  "jolly",   "kind",  "lively"};
  static const std::vector<std::string> kNouns{"anchor", "bridge", "canyon", "desert", "engine", "forest",
                                               "garden", "harbor", "island", "jungle", "kettle", "ladder"};
  std::vector<BenchmarkItem> items;
  for (int64_t i = 0; i < options.count; ++i) {
    std::mt19937_64 random(options.seed * 1000003 + static_cast<uint64_t>(i));
    BenchmarkItem item;
    item.id = "needles-" + std::to_string(options.num_tokens) + "-" + std::to_string(i);
    std::vector<std::string> needles;
    const std::string key = kAdjectives[random() % kAdjectives.size()] + "-" + kNouns[random() % kNouns.size()];
    for (int64_t n = 0; n < options.num_needles; ++n) {
      item.answers.push_back(std::to_string(1000000 + random() % 9000000));
      needles.push_back("One of the special magic numbers for " + key + " is: " + item.answers.back() + ".\n");
    }
    const std::string intro =
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you "
        "about the numbers afterwards.\n";
    const std::string question = "What are all the special magic numbers for " + key +
                                 " mentioned in the provided text? The special magic numbers for " + key +
                                 " mentioned in the provided text are";
    const auto build = [&](int64_t repeats) {
      std::mt19937_64 places(options.seed * 7919 + static_cast<uint64_t>(i));
      std::vector<std::string> lines(static_cast<size_t>(repeats), kNoise);
      for (const std::string& needle : needles) {
        lines.insert(lines.begin() + static_cast<std::ptrdiff_t>(places() % (lines.size() + 1)), needle);
      }
      std::string text = intro;
      for (const std::string& line : lines) text += line;
      return text + question;
    };
    const int64_t bare = count_tokens(build(0));
    if (bare > options.num_tokens) {
      throw UserError("needles", "need " + std::to_string(bare) + " tokens for the question alone",
                      {"asked for prompts of " + std::to_string(options.num_tokens)});
    }
    const int64_t a_line = std::max<int64_t>(1, count_tokens(kNoise + kNoise) - count_tokens(kNoise));
    int64_t repeats = (options.num_tokens - bare) / a_line;
    while (repeats > 0 && count_tokens(build(repeats)) > options.num_tokens) --repeats;
    item.prompt = build(repeats);
    items.push_back(std::move(item));
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

}  // namespace dms
