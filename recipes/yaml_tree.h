// YAML text to a tree of positions and strings: what option tables are read from.  The only user of yaml-cpp, of
// which only the event parser is used: its Node hides duplicate keys.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dms {

struct YamlNode {
  enum class Kind { null, scalar, sequence, mapping };
  using Pointer = std::shared_ptr<const YamlNode>;

  Kind kind = Kind::null;
  std::string text;     // scalar
  bool quoted = false;  // scalar in quotes or block style: text even where it looks like a number
  int line = 1, column = 1;
  std::vector<Pointer> items;                        // sequence
  std::vector<std::pair<Pointer, Pointer>> entries;  // mapping, in file order, duplicates kept
};

// 'text' in quotes, "a list", "a section" or "nothing": what a reader sees at this node, for messages.
std::string describe_kind(const YamlNode& node);

// Throws UserError unless the text is UTF-8 without control characters: yaml-cpp replaces bad bytes silently and
// guesses UTF-16.  `name` stands for the file in messages.
void check_characters(const std::string& name, std::string_view text);

// The one document in `yaml`; a null node when there is none.  An alias shares the node of its anchor.
// Throws UserError: check_characters, syntax, a second document, tags.
YamlNode::Pointer parse_yaml_tree(const std::string& name, std::string_view yaml);

}  // namespace dms
