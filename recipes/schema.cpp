// Option tables filled from YAML and overrides.  The table is walked once, in declaration order, beside the tree of
// the file; problems are collected on the way and reported together, in file order.
#include "recipes/schema.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <set>
#include <tuple>

#include "recipes/option_value.h"
#include "recipes/user_error.h"
#include "recipes/yaml_tree.h"

namespace dms {
namespace {

constexpr size_t largest_recipe_bytes = 1 << 20;
constexpr size_t most_problems_shown = 20;

// `key.path=value` from the command line.  The value is taken verbatim, as the shell has its own quotes; a list is
// written [a, b].
struct Override {
  std::string text, key, value;
  bool used = false;
};

// Where a value came from and what it says.
struct Given {
  std::string where;  // an override's text; unused for a value from the file, whose node knows its place
  YamlNode::Pointer node;
  bool from_file = true;
};

class ParseVisitor : public Schema {
 public:
  ParseVisitor(std::string name, YamlNode::Pointer root, std::span<const std::string> overrides)
      : name_(std::move(name)) {
    for (const std::string& text : overrides) {
      check_characters(text, text);
      const size_t equals = text.find('=');
      if (equals == std::string::npos || equals == 0) {
        report(text, "'" + text + "' is not an override", {"expected key.path=value, e.g. trainer.steps=100"});
        continue;
      }
      overrides_.push_back({text, text.substr(0, equals), text.substr(equals + 1)});
    }
    if (root->kind == YamlNode::Kind::null) {
      root = empty_mapping();  // an empty file asks for the defaults
    } else if (root->kind != YamlNode::Kind::mapping) {
      report_at(*root, "expected sections with options (key: value), found " + describe_kind(*root), {});
      root = empty_mapping();
    }
    enter("", root);
  }

  void section(std::string_view name, std::string_view, const std::function<void()>& body) override {
    const std::string path = declare(name, true);
    YamlNode::Pointer node = empty_mapping();
    if (const YamlNode::Pointer found = find(name)) {
      if (found->kind == YamlNode::Kind::mapping) {
        node = found;
      } else {
        report_at(*found, "'" + path + "' is a section, but its value is " + describe_kind(*found),
                  {found->kind == YamlNode::Kind::null ? "indent its options below it, or remove the line"
                                                       : "indent its options below it"});
      }
    }
    enter(path, node);
    body();
    leave();
  }

  void integer(std::string_view name, int64_t& value, int64_t min, int64_t max, std::string_view) override {
    const std::string expected = spaced("an integer", integer_range(min, max));
    scalar(name, expected, format_integer(value), false, [&](const std::string& text) -> std::optional<std::string> {
      bool overflow = false;
      const std::optional<int64_t> parsed = parse_integer(text, &overflow);
      if (!parsed && !overflow) return "is not an integer";
      if (!parsed || *parsed < min || *parsed > max) return "is out of range";
      value = *parsed;
      return std::nullopt;
    });
  }

  void real(std::string_view name, double& value, double min, double max, std::string_view) override {
    const std::string expected = spaced("a number", real_range(min, max));
    scalar(name, expected, format_real(value), false, [&](const std::string& text) -> std::optional<std::string> {
      const std::optional<double> parsed = parse_real(text);
      if (!parsed) return "is not a finite number";
      if (*parsed < min || *parsed > max) return "is out of range";
      value = *parsed;
      return std::nullopt;
    });
  }

  void flag(std::string_view name, bool& value, std::string_view) override {
    scalar(name, "true or false", format_flag(value), false,
           [&](const std::string& text) -> std::optional<std::string> {
             const std::optional<bool> parsed = parse_flag(text);
             if (!parsed) return "is neither true nor false";
             value = *parsed;
             return std::nullopt;
           });
  }

  void text(std::string_view name, std::string& value, std::string_view) override {
    scalar(name, "text", format_text(value), true, [&](const std::string& text) -> std::optional<std::string> {
      value = text;
      return std::nullopt;
    });
  }

  void path(std::string_view name, std::string& value, std::string_view) override {
    scalar(name, "a path", format_text(value), true, [&](const std::string& text) -> std::optional<std::string> {
      if (has_control_character(text)) return "holds a control character";
      value = text;
      return std::nullopt;
    });
  }

  void list(std::string_view name, std::vector<std::string>& value, std::string_view) override {
    const std::string path = declare(name, false);
    const std::string fallback = format_list(value);
    for (const Given& given : givens(name, path)) {
      std::vector<std::string> items;
      if (given.node->kind == YamlNode::Kind::scalar) {
        items.push_back(given.node->text);
      } else if (given.node->kind == YamlNode::Kind::sequence) {
        for (const YamlNode::Pointer& item : given.node->items) {
          if (item->kind == YamlNode::Kind::scalar) items.push_back(item->text);
        }
      }
      const bool strange_item =
          given.node->kind == YamlNode::Kind::sequence && items.size() != given.node->items.size();
      if (given.node->kind == YamlNode::Kind::mapping || strange_item) {
        report_value(
            given,
            "'" + path + "' is " + describe_kind(*given.node) + (strange_item ? " with an item that is not text" : ""),
            {"expected a list of texts, e.g. [a, b]; default " + fallback});
      } else if (given.node->kind == YamlNode::Kind::null) {
        report_null(given, path, fallback);
      } else {
        value = items;
      }
    }
  }

  void bytes_or_auto(std::string_view name, int64_t& value, std::string_view) override {
    scalar(name, "a size (24GiB, 500MB, a count of bytes) or auto", format_bytes_or_auto(value), false,
           [&](const std::string& text) -> std::optional<std::string> {
             const std::optional<int64_t> parsed = parse_bytes_or_auto(text);
             if (!parsed) return "is not a size";
             value = *parsed;
             return std::nullopt;
           });
  }

  // Call once after the whole table was declared.
  void finish() {
    leave();
    for (const Override& given : overrides_) {
      if (!given.used) report_unknown_override(given);
    }
    throw_problems();
  }

 protected:
  size_t choose(std::string_view name, const std::vector<std::string>& names, size_t current,
                std::string_view) override {
    size_t chosen = current;
    scalar(name, "one of: " + join(names, ", "), names[current], true,
           [&](const std::string& text) -> std::optional<std::string> {
             const auto found = std::find(names.begin(), names.end(), text);
             if (found == names.end()) {
               const std::string hint = did_you_mean(text, names);
               return "is not a choice" + (hint.empty() ? "" : "; " + hint);
             }
             chosen = static_cast<size_t>(found - names.begin());
             return std::nullopt;
           });
    return chosen;
  }

 private:
  struct Scope {
    std::string path;
    YamlNode::Pointer node;
    std::vector<std::string> declared;
  };
  struct Problem {
    int line, column;  // of the file; overrides come last
    std::string where, what;
    std::vector<std::string> details;
  };

  static YamlNode::Pointer empty_mapping() {
    auto node = std::make_shared<YamlNode>();
    node->kind = YamlNode::Kind::mapping;
    return node;
  }
  static std::string spaced(const std::string& noun, const std::string& range) {
    return range.empty() ? noun : noun + " " + range;
  }
  static bool has_control_character(const std::string& text) {
    return std::any_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; });
  }
  // Problems of the command line come after the file's.
  void report(const std::string& where, std::string what, std::vector<std::string> details) {
    problems_.push_back({std::numeric_limits<int>::max(), 0, where, std::move(what), std::move(details)});
  }
  void report_at(const YamlNode& node, std::string what, std::vector<std::string> details) {
    problems_.push_back({node.line, node.column, file_position(node), std::move(what), std::move(details)});
  }
  void report_value(const Given& given, std::string what, std::vector<std::string> details) {
    if (given.from_file) {
      report_at(*given.node, std::move(what), std::move(details));
    } else {
      report(given.where, std::move(what), std::move(details));
    }
  }
  void report_null(const Given& given, const std::string& path, const std::string& fallback) {
    report_value(given, "'" + path + "' has no value", {"remove the line to use the default, " + fallback});
  }
  std::string file_position(const YamlNode& node) const {
    return name_ + ":" + std::to_string(node.line) + ":" + std::to_string(node.column);
  }

  std::string dotted(std::string_view name) const {
    const std::string& prefix = scopes_.back().path;
    return prefix.empty() ? std::string(name) : prefix + "." + std::string(name);
  }

  std::string declare(std::string_view name, bool is_section) {
    scopes_.back().declared.emplace_back(name);
    const std::string path = dotted(name);
    (is_section ? section_paths_ : option_paths_).push_back(path);
    return path;
  }

  // The first entry of this name; further ones are reported as duplicates when the scope is left.
  YamlNode::Pointer find(std::string_view name) const {
    for (const auto& [key, value] : scopes_.back().node->entries) {
      if (key->kind == YamlNode::Kind::scalar && key->text == name) return value;
    }
    return nullptr;
  }

  void enter(const std::string& path, YamlNode::Pointer node) { scopes_.push_back({path, std::move(node), {}}); }

  // All names of the section are known now: judge the keys that the file has in it.
  void leave() {
    const Scope& scope = scopes_.back();
    std::vector<std::pair<std::string, int>> seen;
    for (const auto& [key, value] : scope.node->entries) {
      if (key->kind != YamlNode::Kind::scalar) {
        report_at(*key, "expected an option's name, found " + describe_kind(*key), {});
        continue;
      }
      const std::string path = dotted(key->text);
      const auto first =
          std::find_if(seen.begin(), seen.end(), [&name = key->text](const auto& s) { return s.first == name; });
      if (first != seen.end()) {
        report_at(*key, "'" + path + "' is given twice",
                  {"first given at line " + std::to_string(first->second) + ": remove one"});
        continue;
      }
      seen.emplace_back(key->text, key->line);
      const std::vector<std::string>& declared = scope.declared;
      if (std::find(declared.begin(), declared.end(), key->text) != declared.end()) continue;
      std::vector<std::string> details = {"options here: " + join(declared, ", ")};
      const std::string hint = did_you_mean(key->text, declared);
      if (key->text == "<<") {
        details.push_back("merge keys are not supported: write the options out");
      } else if (!hint.empty()) {
        details.push_back(hint);
      }
      report_at(*key, "unknown option '" + path + "'", details);
    }
    scopes_.pop_back();
  }

  void report_unknown_override(const Override& given) {
    if (std::find(section_paths_.begin(), section_paths_.end(), given.key) != section_paths_.end()) {
      report(given.text, "'" + given.key + "' is a section",
             {"expected one of its options: " + given.key + ".NAME=value"});
      return;
    }
    std::vector<std::string> details;
    std::string nearest = nearest_name(given.key, option_paths_);
    if (nearest.empty()) {  // the section may have been left out
      std::vector<std::string> names;
      for (const std::string& path : option_paths_) names.push_back(path.substr(path.rfind('.') + 1));
      const std::string name = nearest_name(given.key, names);
      const auto found = std::find(names.begin(), names.end(), name);
      if (found != names.end()) nearest = option_paths_[static_cast<size_t>(found - names.begin())];
    }
    if (!nearest.empty()) details.push_back("did you mean '" + nearest + "'?");
    report(given.text, "unknown option '" + given.key + "'", details);
  }

  // The values given for one option, the last of which wins.
  std::vector<Given> givens(std::string_view name, const std::string& path) {
    std::vector<Given> found;
    if (const YamlNode::Pointer node = find(name)) found.push_back({"", node});
    for (Override& given : overrides_) {
      if (given.key != path) continue;
      given.used = true;
      found.push_back({given.text, override_node(given), false});
    }
    return found;
  }

  static YamlNode::Pointer override_node(const Override& given) {
    if (given.value.starts_with('[')) return parse_yaml_tree(given.text, given.value);
    auto node = std::make_shared<YamlNode>();
    node->kind = YamlNode::Kind::scalar;
    node->text = given.value;
    return node;
  }

  // `set` returns what is wrong with the text, if anything.
  void scalar(std::string_view name, const std::string& expected, const std::string& fallback, bool quotes_allowed,
              const std::function<std::optional<std::string>(const std::string&)>& set) {
    const std::string path = declare(name, false);
    const std::string expectation = "expected " + expected + "; default " + fallback;
    for (const Given& given : givens(name, path)) {
      const YamlNode& node = *given.node;
      if (node.kind == YamlNode::Kind::null) {
        report_null(given, path, fallback);
      } else if (node.kind != YamlNode::Kind::scalar) {
        report_value(given, "'" + path + "' is " + describe_kind(node), {expectation});
      } else if (node.quoted && !quotes_allowed) {
        report_value(given, "'" + path + "' is text in quotes: \"" + node.text + "\"", {expectation});
      } else if (const std::optional<std::string> fault = set(node.text)) {
        report_value(given, "'" + path + "': '" + node.text + "' " + *fault, {expectation});
      }
    }
  }

  void throw_problems() {
    if (problems_.empty()) return;
    std::stable_sort(problems_.begin(), problems_.end(), [](const Problem& a, const Problem& b) {
      return std::tie(a.line, a.column) < std::tie(b.line, b.column);
    });
    if (problems_.size() == 1) {
      throw UserError(problems_[0].where, problems_[0].what, problems_[0].details);
    }
    std::vector<std::string> lines;
    for (size_t i = 0; i < std::min(problems_.size(), most_problems_shown); ++i) {
      lines.push_back(problems_[i].where + ": " + problems_[i].what);
      for (const std::string& detail : problems_[i].details) lines.push_back("  " + detail);
    }
    if (problems_.size() > most_problems_shown) {
      lines.push_back("and " + std::to_string(problems_.size() - most_problems_shown) + " more");
    }
    throw UserError(name_, std::to_string(problems_.size()) + " problems", lines);
  }

  std::string name_;
  std::vector<Override> overrides_;
  std::vector<Scope> scopes_;
  std::vector<std::string> option_paths_, section_paths_;
  std::vector<Problem> problems_;
};

std::string read_recipe(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(largest_recipe_bytes + 1, '\0');
  if (file) file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file && !file.eof()) {
    throw UserError(path, "cannot read the file: " + std::generic_category().message(errno));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > largest_recipe_bytes) {
    throw UserError(path, "the file is larger than 1 MiB", {"expected a YAML file with options"});
  }
  return text;
}

}  // namespace

void parse_yaml_text(const std::string& name, std::string_view yaml, std::span<const std::string> overrides,
                     const Describe& describe) {
  ParseVisitor visitor(name, parse_yaml_tree(name, yaml), overrides);
  describe(visitor);
  visitor.finish();
}

void parse_yaml_file(const std::string& path, std::span<const std::string> overrides, const Describe& describe) {
  parse_yaml_text(path, read_recipe(path), overrides, describe);
}

}  // namespace dms
