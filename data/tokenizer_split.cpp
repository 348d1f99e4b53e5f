#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/tokenizer_split.h"

#include <pcre2.h>

#include <stdexcept>

#include "data/tokenizer_text.h"

namespace dms {
namespace {

// PCRE2's \s also matches U+180E, which left White_Space in Unicode 6.3; the reference's does not.
constexpr std::string_view kWhiteSpace =
    R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

std::string with_exact_white_space(std::string_view pattern) {
  std::string result;
  bool in_brackets = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      if (escaped == 's' || escaped == 'S') {
        if (in_brackets && escaped == 'S') throw std::logic_error("\\S in brackets");
        if (!in_brackets) result += escaped == 's' ? "[" : "[^";
        result += kWhiteSpace;
        if (!in_brackets) result += "]";
      } else {
        result += {'\\', escaped};
      }
      continue;
    }
    if (pattern[i] == '[') in_brackets = true;
    if (pattern[i] == ']') in_brackets = false;
    result += pattern[i];
  }
  return result;
}

// Scratch memory of one thread's matches.
struct MatchMemory {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 * 1024, 16 * 1024 * 1024, nullptr);
  MatchMemory() { pcre2_jit_stack_assign(context, nullptr, stack); }
  ~MatchMemory() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
};

// Runs of numeric and of other characters; numeric ones one by one if `individually`.
void split_digits(std::string_view text, bool individually, std::vector<std::string_view>& pieces) {
  size_t begin = 0;
  bool was_numeric = false;
  for (size_t at = 0; at < text.size();) {
    const Character character = first_character(text.substr(at));
    const bool numeric = is_numeric(character.code_point);
    if (at > begin && (numeric != was_numeric || (numeric && individually))) {
      pieces.push_back(text.substr(begin, at - begin));
      begin = at;
    }
    was_numeric = numeric;
    at += character.num_bytes;
  }
  if (begin < text.size()) pieces.push_back(text.substr(begin));
}

}  // namespace

struct PieceSplitter::Step {
  SplitStep::Kind kind;
  pcre2_code* code = nullptr;
  ~Step() { pcre2_code_free(code); }

  void split_by_matches(std::string_view text, std::vector<std::string_view>& pieces) const {
    thread_local MatchMemory memory;
    size_t position = 0;
    while (position < text.size()) {
      // The text was validated once; PCRE2 would do it again from the start at every match.
      const int result = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), position,
                                     PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, memory.data, memory.context);
      if (result == PCRE2_ERROR_NOMATCH) break;
      if (result < 0) throw std::runtime_error("PCRE2 match failed with code " + std::to_string(result));
      const PCRE2_SIZE* match = pcre2_get_ovector_pointer(memory.data);
      if (match[0] > position) pieces.push_back(text.substr(position, match[0] - position));
      pieces.push_back(text.substr(match[0], match[1] - match[0]));
      position = match[1];
    }
    if (position < text.size()) pieces.push_back(text.substr(position));
  }
};

PieceSplitter::PieceSplitter(const std::vector<SplitStep>& steps) {
  for (const SplitStep& description : steps) {
    auto step = std::make_unique<Step>();
    step->kind = description.kind;
    if (description.kind == SplitStep::Kind::kRegex) {
      const std::string pattern = with_exact_white_space(description.pattern);
      int error = 0;
      PCRE2_SIZE offset = 0;
      step->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP,
                                 &error, &offset, nullptr);
      if (step->code == nullptr) throw std::logic_error("PCRE2 refuses the pattern " + pattern);
      pcre2_jit_compile(step->code, PCRE2_JIT_COMPLETE);  // without a JIT the match is slower, not different
    }
    steps_.push_back(std::move(step));
  }
}

PieceSplitter::~PieceSplitter() = default;

std::vector<std::string_view> PieceSplitter::split(std::string_view text) const {
  std::vector<std::string_view> pieces;
  if (!text.empty()) pieces.push_back(text);
  for (const std::unique_ptr<Step>& step : steps_) {
    std::vector<std::string_view> smaller;
    for (const std::string_view piece : pieces) {
      if (step->kind == SplitStep::Kind::kRegex) {
        step->split_by_matches(piece, smaller);
      } else {
        split_digits(piece, step->kind == SplitStep::Kind::kDigits, smaller);
      }
    }
    pieces = std::move(smaller);
  }
  return pieces;
}

}  // namespace dms
