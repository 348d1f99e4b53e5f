// The Unicode side of tokenizing: valid UTF-8, character classes, NFC, and the byte-level alphabet.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dms {

bool is_valid_utf8(std::string_view bytes);

// Each maximal invalid part becomes one U+FFFD (Unicode 3.9, "substitution of maximal subparts").
std::string replace_invalid_utf8(std::string_view bytes);

// The character that begins / ends at the front / back of valid UTF-8, and its bytes.
struct Character {
  int32_t code_point = 0;
  size_t num_bytes = 0;
};
Character first_character(std::string_view text);
Character last_character(std::string_view text);

bool is_white_space(int32_t code_point);  // Unicode White_Space
bool is_numeric(int32_t code_point);      // categories Nd, Nl, No
bool is_word(int32_t code_point);         // Alphabetic, marks, decimal digits, connector punctuation, joiners

std::string nfc(std::string_view text);  // as the reference normalises, by Unicode 9
// The same, and for each byte position of the result (its size included) the place in `text` where what comes before
// it ends: exact to the sequences of characters that normalise on their own.
std::string nfc(std::string_view text, std::vector<size_t>& raw_ends);

// A byte-level token text ("Ġthe") as the bytes it stands for (" the"); nullopt when a character is outside the
// alphabet of 256 (GPT-2, encoder.py: printable bytes stand for themselves, the others for U+0100 and up).
std::optional<std::string> bytes_of_token(std::string_view token);

}  // namespace dms
