#include "data/streamed_text.h"

namespace dms {

namespace {

constexpr const char* kReplacement = "\xEF\xBF\xBD";
// No character needs more tokens than it has bytes; more than this many is text that is not UTF-8 at all.
constexpr size_t kMostTokensACharacter = 4;

}  // namespace

std::string StreamedText::add(int32_t token) {
  pending_.push_back(token);
  std::string text = tokenizer_->decode(pending_, /*skip_special_tokens=*/true);
  if (text.ends_with(kReplacement) && pending_.size() < kMostTokensACharacter) return "";
  pending_.clear();
  return text;
}

std::string StreamedText::finish() {
  std::string text = pending_.empty() ? "" : tokenizer_->decode(pending_, /*skip_special_tokens=*/true);
  pending_.clear();
  return text;
}

}  // namespace dms
