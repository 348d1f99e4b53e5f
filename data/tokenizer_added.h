// Finds added tokens ("<|im_end|>") in text: leftmost, then longest, with the conditions and white space that their
// flags ask for.  Text typed by users matches too: there is no escaping in the reference.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer_json.h"

namespace dms {

struct TextPart {
  std::string_view text;
  int32_t id = -1;  // of the added token, or -1: text between added tokens
};

class AddedTokenFinder {
 public:
  // `tokens` as they are to be matched: contents already normalised where the match is.
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  // The parts of valid UTF-8, in order; none is empty.
  std::vector<TextPart> split(std::string_view text) const;

 private:
  const AddedToken* match_at(std::string_view text, size_t position) const;

  std::vector<AddedToken> tokens_;
  std::vector<const AddedToken*> by_first_byte_[256];  // longest first
};

}  // namespace dms
