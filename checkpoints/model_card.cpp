#include "checkpoints/model_card.h"

#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "data/staged_file.h"
#include "recipes/strict_json.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// The `license...` lines of the base model's own model card, so that the export states the same terms.
std::string license_lines(const std::string& model_dir) {
  const fs::path card = fs::path(model_dir) / "README.md";
  std::error_code ignored;
  if (!fs::is_regular_file(card, ignored)) return "";
  const std::string text = read_file(card.string());
  if (!text.starts_with("---\n")) return "";
  std::string lines;
  for (size_t begin = 4, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string line = text.substr(begin, end - begin);
    if (line == "---") return lines;
    if (line.starts_with("license")) lines += line + "\n";
  }
  return "";  // the header never ends, so it is none
}

std::string number(double value, const char* format = "%.4g") {
  char text[32];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

// The figures of `dms eval` as a section of the README.
std::string results_section(const std::string& evaluation) {
  if (evaluation.empty()) return "";
  const json figures = read_json_object(evaluation);
  struct Row {
    const char* key;
    const char* text;
  };
  constexpr Row rows[] = {
      {"kv_memory_ratio", "KV memory, dense / allocated at the end of the sequence"},
      {"kl_mean", "KL(base model \\|\\| this model), nats per token"},
      {"kl_mean_second_half", "the same over the second half of each sequence"},
      {"top1_agreement", "next token the same as the base model's"},
      {"ppl_teacher", "perplexity of the base model"},
      {"ppl_student", "perplexity of this model"},
  };
  std::string table;
  for (const Row& row : rows) {
    const auto it = figures.find(row.key);
    if (it == figures.end() || !it->is_number()) continue;
    table += std::string("| ") + row.text + " | " + number(it->get<double>()) + " |\n";
  }
  if (table.empty()) {
    throw UserError(evaluation, "holds none of the figures of an evaluation",
                    {"expected what `dms eval --json` writes"});
  }
  std::string text = "\n## Measured\n\nUnder hard eviction with the compact cache, on held-out text";
  if (figures.contains("tokens") && figures["tokens"].is_number()) {
    text += " (" + number(figures["tokens"].get<double>(), "%.0f") + " tokens";
    if (figures.contains("sequence_length") && figures["sequence_length"].is_number()) {
      text += " in sequences of " + number(figures["sequence_length"].get<double>(), "%.0f");
    }
    text += ")";
  }
  return text + ":\n\n| | |\n|---|---|\n" + table;
}

}  // namespace

std::string make_model_card(std::string_view card_template, const ExportInput& input) {
  const AdapterFile& adapters = input.adapters;
  const std::map<std::string, std::string> values = {
      {"LICENSE", license_lines(input.model_dir)},
      {"MODEL", adapters.base_model},
      {"WINDOW", std::to_string(adapters.window)},
      {"ADAPTER", adapters.adapter == "linear" ? "small linear adapters" : "one borrowed query channel per KV head,"},
      {"TARGET_CR", number(adapters.target_cr)},
      {"SEQUENCE_LENGTH", std::to_string(adapters.sequence_length)},
      {"RESULTS", results_section(input.evaluation)},
  };
  // One pass over the template, so that values are never searched for names.
  std::string text;
  std::string_view rest = card_template;
  for (size_t at; (at = rest.find('@')) != std::string_view::npos;) {
    const size_t end = rest.find('@', at + 1);
    const auto value = values.find(std::string(rest.substr(at + 1, end - at - 1)));
    TORCH_CHECK(value != values.end(), "a model card has an unknown name at '", rest.substr(at, 20), "'");
    text.append(rest.substr(0, at)).append(value->second);
    rest.remove_prefix(end + 1);
  }
  return text.append(rest);
}

}  // namespace dms
