// The text of one option's value, both ways: how each type is spelled in a recipe, on the command line and in the
// resolved recipe, and what a message says was expected.  What format_* writes, parse_* reads back exactly.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dms {

// Decimal digits with an optional sign; '_' between digits (1_000_000) and an exact power (62e6) are accepted; a
// decimal point, other bases and leading zeros are not.  An integer beyond int64 sets `*overflow`.
std::optional<int64_t> parse_integer(std::string_view text, bool* overflow = nullptr);
// Decimal or scientific; infinities and NaN are no numbers here, nor is what overflows to one.
std::optional<double> parse_real(std::string_view text);
std::optional<bool> parse_flag(std::string_view text);  // true | false
// "auto" (-1), a count of bytes, or a number with B, kB, MB, GB, TB, KiB, MiB, GiB or TiB; at least one byte.
std::optional<int64_t> parse_bytes_or_auto(std::string_view text);

std::string format_integer(int64_t value);
std::string format_real(double value);  // shortest text that reads back equal; always with a decimal point
std::string format_flag(bool value);
std::string format_bytes_or_auto(int64_t value);  // the largest binary unit that divides it
std::string format_text(std::string_view value);  // quoted where YAML readers would see something else
std::string format_list(const std::vector<std::string>& value);

// "from 1 to 8", "at least 1", "at most 8", or "" when unbounded.
std::string integer_range(int64_t min, int64_t max);
std::string real_range(double min, double max);
std::string join(const std::vector<std::string>& parts, std::string_view separator);

}  // namespace dms
