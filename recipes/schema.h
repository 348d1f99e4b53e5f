// Option tables: each component declares its options once, as a function `describe(Schema&, Options&)` beside its
// options struct, and everything else follows from that table: parsing YAML with line numbers, key=value overrides,
// range checks, the resolved recipe, --help and the documentation table.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dms {

// A visitor over option tables.  Bounds are inclusive.  Every option's current value is its default until parsed.
class Schema {
 public:
  virtual ~Schema() = default;

  // A nested mapping.  `body` declares its options with the same visitor.
  virtual void section(std::string_view name, std::string_view help, const std::function<void()>& body) = 0;

  virtual void integer(std::string_view name, int64_t& value, int64_t min, int64_t max, std::string_view help) = 0;
  virtual void real(std::string_view name, double& value, double min, double max, std::string_view help) = 0;
  virtual void flag(std::string_view name, bool& value, std::string_view help) = 0;
  virtual void text(std::string_view name, std::string& value, std::string_view help) = 0;
  // A file or directory; relative paths are taken from the current directory, as on the command line.
  virtual void path(std::string_view name, std::string& value, std::string_view help) = 0;
  virtual void list(std::string_view name, std::vector<std::string>& value, std::string_view help) = 0;
  // A size in bytes ("24GiB", "500MB", plain integer) or "auto", which is stored as -1.
  virtual void bytes_or_auto(std::string_view name, int64_t& value, std::string_view help) = 0;

  template <class E>
  void choice(std::string_view name, E& value, std::vector<std::pair<std::string, E>> choices, std::string_view help) {
    std::vector<std::string> names;
    size_t current = 0;
    for (size_t i = 0; i < choices.size(); ++i) {
      names.push_back(choices[i].first);
      if (choices[i].second == value) current = i;
    }
    value = choices[choose(name, names, current, help)].second;
  }

 protected:
  // Returns the index of the chosen name.
  virtual size_t choose(std::string_view name, const std::vector<std::string>& names, size_t current,
                        std::string_view help) = 0;
};

// A function that declares a whole option tree on a visitor, e.g. [&](Schema& s) { describe(s, recipe); }.
using Describe = std::function<void(Schema&)>;

// Fills the described options from a YAML file and `key.path=value` overrides (later ones win).  An override's value is
// taken verbatim, without YAML quoting; only a list is written [a, b].  A list may be given as one text.
// Throws UserError, all problems at once: unknown keys (with the nearest name), duplicates, missing or mistyped values,
// ranges; syntax errors alone.  After a throw the options hold a mixture: discard them.
void parse_yaml_file(const std::string& path, std::span<const std::string> overrides, const Describe& describe);
// The same from text; `name` stands for the file in messages.
void parse_yaml_text(const std::string& name, std::string_view yaml, std::span<const std::string> overrides,
                     const Describe& describe);

// The options with their current values as YAML, each with its help as a comment when `with_help`.
std::string dump_yaml(const Describe& describe, bool with_help = false);

// One row an option: dotted name, type, default (the current value), range or choices, help.
struct OptionRow {
  std::string name, type, value, range, help;
};
std::vector<OptionRow> option_rows(const Describe& describe);

}  // namespace dms
