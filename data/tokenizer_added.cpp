#include "data/tokenizer_added.h"

#include <algorithm>

#include "data/tokenizer_text.h"

namespace dms {
namespace {

bool touches_word(std::string_view before, std::string_view after) {
  return (!before.empty() && is_word(last_character(before).code_point)) ||
         (!after.empty() && is_word(first_character(after).code_point));
}

size_t white_space_at_end(std::string_view text) {
  size_t num_bytes = 0;
  while (num_bytes < text.size()) {
    const Character last = last_character(text.substr(0, text.size() - num_bytes));
    if (!is_white_space(last.code_point)) break;
    num_bytes += last.num_bytes;
  }
  return num_bytes;
}

size_t white_space_at_start(std::string_view text) {
  size_t num_bytes = 0;
  while (num_bytes < text.size()) {
    const Character first = first_character(text.substr(num_bytes));
    if (!is_white_space(first.code_point)) break;
    num_bytes += first.num_bytes;
  }
  return num_bytes;
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  for (const AddedToken& token : tokens_) {
    if (!token.content.empty()) by_first_byte_[static_cast<unsigned char>(token.content[0])].push_back(&token);
  }
  for (auto& same_first_byte : by_first_byte_) {
    std::stable_sort(same_first_byte.begin(), same_first_byte.end(),
                     [](const AddedToken* a, const AddedToken* b) { return a->content.size() > b->content.size(); });
  }
}

const AddedToken* AddedTokenFinder::match_at(std::string_view text, size_t position) const {
  for (const AddedToken* token : by_first_byte_[static_cast<unsigned char>(text[position])]) {
    if (text.substr(position).starts_with(token->content)) return token;
  }
  return nullptr;
}

std::vector<TextPart> AddedTokenFinder::split(std::string_view text) const {
  std::vector<TextPart> parts;
  size_t part_begin = 0;
  for (size_t position = 0; position < text.size() && !tokens_.empty();) {
    const AddedToken* token = match_at(text, position);
    if (token == nullptr) {
      ++position;
      continue;
    }
    size_t begin = position;
    size_t end = position + token->content.size();
    position = end;
    if (token->single_word && touches_word(text.substr(0, begin), text.substr(end))) continue;
    // White space that the token before has swallowed stays with that one.
    if (token->lstrip) begin -= std::min(white_space_at_end(text.substr(0, begin)), begin - part_begin);
    if (token->rstrip) end += white_space_at_start(text.substr(end));
    if (begin > part_begin) parts.push_back({text.substr(part_begin, begin - part_begin), -1});
    parts.push_back({text.substr(begin, end - begin), token->id});
    part_begin = position = end;
  }
  if (part_begin < text.size()) parts.push_back({text.substr(part_begin), -1});
  return parts;
}

}  // namespace dms
