// What of tokenizer.json this program reproduces, as plain data.  Everything else is refused by its name: a tokenizer
// that is nearly right trains a model on other words than its own, and nothing would show it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace dms {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // not matched inside a word
  bool lstrip = false;       // swallows white space before it
  bool rstrip = false;       // swallows white space after it
  bool normalized = false;   // matched after normalisation instead of before
  bool special = false;      // left out when decoding with skip_special_tokens
};

struct SplitStep {
  enum class Kind { kRegex, kDigits, kDigitRuns };
  Kind kind = Kind::kRegex;
  std::string pattern;  // kRegex: matches and the gaps between them become pieces
};

struct TokenizerDescription {
  std::vector<AddedToken> added_tokens;
  bool nfc = false;
  std::vector<SplitStep> split_steps;
  std::vector<std::pair<std::string, int32_t>> vocab;  // in the byte-level alphabet, as in the file
  std::vector<std::pair<std::string, std::string>> merges;
  bool ignore_merges = false;  // a piece that is a vocabulary entry becomes that id without merging
  std::optional<int32_t> unk_id;
  std::vector<int32_t> prefix_ids, suffix_ids;  // what add_special_tokens puts around a text
};

// `path` is for messages.  Throws UserError.
TokenizerDescription parse_tokenizer_json(const std::string& text, const std::string& path);

}  // namespace dms
