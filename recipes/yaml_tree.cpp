#include "recipes/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <sstream>

#include "recipes/user_error.h"

namespace dms {
namespace {

std::string position(const std::string& name, int line, int column) {
  return name + ":" + std::to_string(line) + ":" + std::to_string(column);
}

// The length of the UTF-8 sequence that `text` starts with, 0 when it is not one (overlong, surrogate, cut off).
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  if (byte(0) < 0x80) return 1;
  const size_t length = byte(0) >= 0xF0 ? 4 : byte(0) >= 0xE0 ? 3 : 2;
  if (byte(0) < 0xC2 || byte(0) > 0xF4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const uint8_t second = byte(1);
  const bool overlong = (byte(0) == 0xE0 && second < 0xA0) || (byte(0) == 0xF0 && second < 0x90);
  const bool beyond = (byte(0) == 0xED && second > 0x9F) || (byte(0) == 0xF4 && second > 0x8F);
  return overlong || beyond ? 0 : length;
}

std::string_view line_text(std::string_view yaml, int line) {
  for (int i = 1; i < line; ++i) yaml.remove_prefix(std::min(yaml.size(), yaml.find('\n') + 1));
  return yaml.substr(0, yaml.find('\n'));
}

bool is_indented_with_tab(std::string_view yaml, int line) {
  const std::string_view text = line_text(yaml, line);
  return text.substr(0, text.find_first_not_of(" \t")).find('\t') != std::string_view::npos;
}

// Line and column from 1; what yaml-cpp finds past the end of the file is at its last line's end.
std::pair<int, int> inside(std::string_view yaml, const YAML::Mark& mark) {
  while (yaml.ends_with('\n')) yaml.remove_suffix(1);
  const int num_lines = 1 + static_cast<int>(std::count(yaml.begin(), yaml.end(), '\n'));
  if (mark.line + 1 <= num_lines) return {mark.line + 1, mark.column + 1};
  return {num_lines, static_cast<int>(line_text(yaml, num_lines).size()) + 1};
}

class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(std::string name) : name_(std::move(name)) {}

  YamlNode::Pointer root() const { return root_; }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (root_) {
      throw UserError(position(name_, mark.line + 1, mark.column + 1), "a second YAML document begins here",
                      {"expected one document: remove the '---' line or what follows it"});
    }
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto node = make(YamlNode::Kind::null, mark, anchor);
    if (!keys_.empty() && keys_.back()) {  // yaml-cpp marks a missing value where the next token stands
      node->line = keys_.back()->line;
      node->column = keys_.back()->column;
    }
    add(node);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = anchors_.find(anchor);
    const bool open = std::find(open_.begin(), open_.end(), found->second) != open_.end();
    if (open) {
      throw UserError(position(name_, mark.line + 1, mark.column + 1), "an alias of the node that contains it");
    }
    add(found->second);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    refuse_tag(mark, tag);
    auto node = make(YamlNode::Kind::scalar, mark, anchor);
    node->text = value;
    node->quoted = tag == "!";
    add(node);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    refuse_tag(mark, tag);
    open(make(YamlNode::Kind::sequence, mark, anchor));
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    refuse_tag(mark, tag);
    open(make(YamlNode::Kind::mapping, mark, anchor));
  }
  void OnMapEnd() override { close(); }

 private:
  using Mutable = std::shared_ptr<YamlNode>;

  Mutable make(YamlNode::Kind kind, const YAML::Mark& mark, YAML::anchor_t anchor) {
    auto node = std::make_shared<YamlNode>();
    node->kind = kind;
    node->line = mark.line + 1;
    node->column = mark.column + 1;
    if (anchor != YAML::NullAnchor) anchors_[anchor] = node;
    return node;
  }

  void refuse_tag(const YAML::Mark& mark, const std::string& tag) {
    if (tag.empty() || tag == "?" || tag == "!") return;  // yaml-cpp's marks for plain and quoted scalars
    throw UserError(position(name_, mark.line + 1, mark.column + 1), "YAML tag '" + tag + "' is not supported",
                    {"types come from the option table: remove the tag"});
  }

  void open(const Mutable& node) {
    open_.push_back(node);
    keys_.emplace_back();
  }
  void close() {
    const Mutable node = open_.back();
    open_.pop_back();
    keys_.pop_back();
    add(node);
  }

  // A finished node belongs to the innermost open one; in a mapping, keys and values alternate.
  void add(const YamlNode::Pointer& node) {
    if (open_.empty()) {
      root_ = node;
    } else if (open_.back()->kind == YamlNode::Kind::sequence) {
      open_.back()->items.push_back(node);
    } else if (!keys_.back()) {
      keys_.back() = node;
    } else {
      open_.back()->entries.emplace_back(keys_.back(), node);
      keys_.back() = nullptr;
    }
  }

  std::string name_;
  YamlNode::Pointer root_;
  std::vector<Mutable> open_;
  std::vector<YamlNode::Pointer> keys_;  // parallel to open_: the key that waits for its value
  std::map<YAML::anchor_t, Mutable> anchors_;
};

}  // namespace

void check_characters(const std::string& name, std::string_view text) {
  int line = 1, column = 1;
  for (size_t i = 0; i < text.size();) {
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    const size_t length = utf8_length(text.substr(i));
    const bool control = byte == 0x7F || (byte < 0x20 && byte != '\t' && byte != '\n' && byte != '\r');
    if (length == 0 || control) {
      char hex[8];
      std::snprintf(hex, sizeof hex, "0x%02x", byte);
      throw UserError(position(name, line, column),
                      std::string("byte ") + hex + (control ? " is a control character" : " is not UTF-8 text"),
                      {"expected plain text in UTF-8"});
    }
    ++column;
    if (byte == '\n') ++line, column = 1;
    i += length;
  }
}

std::string describe_kind(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::null:
      return "nothing";
    case YamlNode::Kind::scalar:
      return "'" + node.text + "'";
    case YamlNode::Kind::sequence:
      return "a list";
    case YamlNode::Kind::mapping:
      return "a section";
  }
  return "";
}

YamlNode::Pointer parse_yaml_tree(const std::string& name, std::string_view yaml) {
  check_characters(name, yaml);
  TreeBuilder builder(name);
  try {
    // yaml-cpp 0.7 accepts a quoted text that never ends when the file ends with a line break; so the file ends with
    // an empty comment, which changes no other meaning.
    std::istringstream stream(std::string(yaml) + "\n#");
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    if (error.mark.is_null()) throw UserError(name, "YAML syntax: " + error.msg);
    const auto [line, column] = inside(yaml, error.mark);
    std::vector<std::string> details;
    if (is_indented_with_tab(yaml, line)) details.push_back("the line is indented with a tab; YAML wants spaces");
    throw UserError(position(name, line, column), "YAML syntax: " + error.msg, details);
  }
  return builder.root() ? builder.root() : std::make_shared<YamlNode>();
}

}  // namespace dms
