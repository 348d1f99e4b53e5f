// Text as tokens arrive: a byte-level token may end in the middle of a character, which is then held back until the
// rest of it has come.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace dms {

class StreamedText {
 public:
  explicit StreamedText(std::shared_ptr<const Tokenizer> tokenizer) : tokenizer_(std::move(tokenizer)) {}

  // The text that the token completes; valid UTF-8, possibly empty.
  std::string add(int32_t token);
  // What is left when no more tokens come: an unfinished character is shown as U+FFFD.
  std::string finish();

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<int32_t> pending_;
};

}  // namespace dms
