#include "data/tokenizer_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <iterator>
#include <stdexcept>

namespace dms {
namespace {

// Length of the valid UTF-8 character at the front, or 0; then `*invalid_bytes` is the maximal subpart to replace.
size_t valid_length(std::string_view bytes, size_t* invalid_bytes) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  *invalid_bytes = 1;
  size_t length;
  unsigned char low = 0x80, high = 0xBF;  // allowed second bytes (Unicode table 3-7)
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return 0;
  }
  for (size_t i = 1; i < length; ++i) {
    if (i >= bytes.size() || byte(i) < low || byte(i) > high) return 0;
    *invalid_bytes = i + 1;
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

// Code point of each of the 256 bytes in the byte-level alphabet.
std::array<int32_t, 256> make_alphabet() {
  std::array<int32_t, 256> alphabet{};
  int32_t next = 0x100;
  for (int32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    alphabet[static_cast<size_t>(byte)] = printable ? byte : next++;
  }
  return alphabet;
}

std::array<int16_t, 0x144> make_inverse_alphabet() {
  std::array<int16_t, 0x144> inverse{};
  inverse.fill(-1);
  const std::array<int32_t, 256> alphabet = make_alphabet();
  for (int16_t byte = 0; byte < 256; ++byte) inverse[static_cast<size_t>(alphabet[static_cast<size_t>(byte)])] = byte;
  return inverse;
}

// The reference normalises by the tables of Unicode 9.  Characters that later versions gave a combining class or a
// composition stay where they are in its NFC, and nothing moves across them.  Found by comparing every character of
// utf8proc 2.8 (Unicode 15) with tokenizers 0.22.2.
struct CodePoints {
  int32_t first, last;
};
constexpr CodePoints kNewerThanReferenceNfc[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},
    {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},
    {0xA82C, 0xA82C},   {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50},
    {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11930, 0x11930}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0},
    {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45},
    {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136},
    {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}};

bool is_newer_than_reference_nfc(int32_t code_point) {
  const CodePoints* range =
      std::lower_bound(std::begin(kNewerThanReferenceNfc), std::end(kNewerThanReferenceNfc), code_point,
                       [](const CodePoints& points, int32_t value) { return points.last < value; });
  return range != std::end(kNewerThanReferenceNfc) && range->first <= code_point;
}

void append_nfc(std::string_view text, std::string& result) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; })) {
    result += text;
    return;
  }
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t num_bytes =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &mapped, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (num_bytes < 0) throw std::runtime_error(std::string("NFC: ") + utf8proc_errmsg(num_bytes));
  result.append(reinterpret_cast<const char*>(mapped), static_cast<size_t>(num_bytes));
  std::free(mapped);
}

}  // namespace

bool is_valid_utf8(std::string_view bytes) {
  size_t invalid_bytes;
  while (!bytes.empty()) {
    const size_t length = valid_length(bytes, &invalid_bytes);
    if (length == 0) return false;
    bytes.remove_prefix(length);
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  while (!bytes.empty()) {
    size_t invalid_bytes = 0;
    const size_t length = valid_length(bytes, &invalid_bytes);
    text.append(length > 0 ? bytes.substr(0, length) : std::string_view("\xEF\xBF\xBD"));
    bytes.remove_prefix(length > 0 ? length : invalid_bytes);
  }
  return text;
}

Character first_character(std::string_view text) {
  utf8proc_int32_t code_point = 0;
  const utf8proc_ssize_t num_bytes = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                                      static_cast<utf8proc_ssize_t>(text.size()), &code_point);
  if (num_bytes <= 0) throw std::logic_error("first_character: not valid UTF-8");
  return {code_point, static_cast<size_t>(num_bytes)};
}

Character last_character(std::string_view text) {
  size_t begin = text.size() - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return first_character(text.substr(begin));
}

bool is_white_space(int32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_numeric(int32_t code_point) {
  const utf8proc_category_t category = utf8proc_category(code_point);
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL || category == UTF8PROC_CATEGORY_NO;
}

bool is_word(int32_t c) {
  switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:  // joiners, and the symbols that are Other_Alphabetic
      return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
             (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
  }
}

std::string nfc(std::string_view text) {
  std::string result;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    if (static_cast<unsigned char>(text[at]) < 0xDF) {  // below U+07C0, before the first range
      ++at;
      continue;
    }
    const Character character = first_character(text.substr(at));
    if (is_newer_than_reference_nfc(character.code_point)) {
      append_nfc(text.substr(begin, at - begin), result);
      result += text.substr(at, character.num_bytes);
      begin = at + character.num_bytes;
    }
    at += character.num_bytes;
  }
  append_nfc(text.substr(begin), result);
  return result;
}

std::string nfc(std::string_view text, std::vector<size_t>& raw_ends) {
  std::string result;
  raw_ends.assign(1, 0);
  for (size_t at = 0; at < text.size();) {
    // Characters below U+0300 neither move nor compose with what stands before them.
    size_t end = at + 1;
    while (end < text.size() && static_cast<unsigned char>(text[end]) >= 0x80 &&
           ((static_cast<unsigned char>(text[end]) & 0xC0) == 0x80 || static_cast<unsigned char>(text[end]) >= 0xCC)) {
      ++end;
    }
    const std::string_view sequence = text.substr(at, end - at);
    const std::string normalized = nfc(sequence);
    for (size_t i = 1; i <= normalized.size(); ++i) raw_ends.push_back(normalized == sequence ? at + i : end);
    result += normalized;
    at = end;
  }
  return result;
}

std::optional<std::string> bytes_of_token(std::string_view token) {
  static const std::array<int16_t, 0x144> kInverse = make_inverse_alphabet();
  std::string bytes;
  while (!token.empty()) {
    const Character character = first_character(token);
    if (character.code_point >= static_cast<int32_t>(kInverse.size())) return std::nullopt;
    const int16_t byte = kInverse[static_cast<size_t>(character.code_point)];
    if (byte < 0) return std::nullopt;
    bytes += static_cast<char>(byte);
    token.remove_prefix(character.num_bytes);
  }
  return bytes;
}

}  // namespace dms
