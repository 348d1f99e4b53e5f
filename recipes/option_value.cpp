#include "recipes/option_value.h"

#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>

namespace dms {
namespace {

constexpr int64_t int64_min = std::numeric_limits<int64_t>::min();
constexpr int64_t int64_max = std::numeric_limits<int64_t>::max();

constexpr std::array<std::pair<std::string_view, int64_t>, 9> byte_units = {{
    {"TiB", int64_t{1} << 40},
    {"GiB", int64_t{1} << 30},
    {"MiB", int64_t{1} << 20},
    {"KiB", int64_t{1} << 10},
    {"TB", 1'000'000'000'000},
    {"GB", 1'000'000'000},
    {"MB", 1'000'000},
    {"kB", 1'000},
    {"B", 1},
}};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// "1_000" -> "1000"; nothing unless digits with single underscores between them and no leading zero.
std::optional<std::string> plain_digits(std::string_view text) {
  std::string digits;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool separates =
        text[i] == '_' && i > 0 && i + 1 < text.size() && is_digit(text[i - 1]) && is_digit(text[i + 1]);
    if (separates) continue;
    if (!is_digit(text[i])) return std::nullopt;
    digits += text[i];
  }
  if (digits.empty() || (digits.size() > 1 && digits[0] == '0')) return std::nullopt;
  return digits;
}

// Words and shapes that YAML 1.1 readers (PyYAML) take for something else than text.
bool is_plain_text(std::string_view text) {
  if (text.empty()) return false;
  const char first = text[0];
  const bool relative = text.starts_with("./") || text.starts_with("../");
  if (!std::isalpha(static_cast<unsigned char>(first)) && first != '/' && first != '_' && !relative) return false;
  std::string lower;
  for (char c : text) {
    const unsigned char u = static_cast<unsigned char>(c);
    if (u >= 0x80 || (!std::isalnum(u) && std::string_view("_./+-").find(c) == std::string_view::npos)) return false;
    lower += static_cast<char>(std::tolower(u));
  }
  for (std::string_view word : {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}) {
    if (lower == word) return false;
  }
  return true;
}

}  // namespace

std::optional<int64_t> parse_integer(std::string_view text, bool* overflow) {
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  std::string zeros;
  const size_t e = text.find_first_of("eE");
  if (e != std::string_view::npos) {
    std::string_view exponent = text.substr(e + 1);
    if (exponent.starts_with('+')) exponent.remove_prefix(1);
    if (exponent.empty() || exponent.size() > 2) return std::nullopt;
    for (char c : exponent) {
      if (!is_digit(c)) return std::nullopt;
    }
    zeros.assign(static_cast<size_t>(std::stoi(std::string(exponent))), '0');
    text = text.substr(0, e);
  }
  std::optional<std::string> digits = plain_digits(text);
  if (!digits) return std::nullopt;
  if (*digits != "0") *digits += zeros;
  const std::string number = (negative ? "-" : "") + *digits;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
  if (error == std::errc()) return value;
  if (overflow) *overflow = true;
  return std::nullopt;
}

std::optional<double> parse_real(std::string_view text) {
  if (text.starts_with('+')) {
    text.remove_prefix(1);
    if (text.starts_with('-')) return std::nullopt;
  }
  double value = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::optional<bool> parse_flag(std::string_view text) {
  if (text == "true") return true;
  if (text == "false") return false;
  return std::nullopt;
}

std::optional<int64_t> parse_bytes_or_auto(std::string_view text) {
  if (text == "auto") return -1;
  int64_t unit_bytes = 1;
  for (const auto& [unit, size] : byte_units) {
    if (text.ends_with(unit)) {
      unit_bytes = size;
      text.remove_suffix(unit.size());
      while (text.ends_with(' ')) text.remove_suffix(1);
      break;
    }
  }
  if (const std::optional<int64_t> count = parse_integer(text)) {
    if (*count < 1 || *count > int64_max / unit_bytes) return std::nullopt;
    return *count * unit_bytes;
  }
  const std::optional<double> count = parse_real(text);
  if (!count || unit_bytes == 1) return std::nullopt;
  const double bytes = *count * static_cast<double>(unit_bytes);
  if (bytes < 1.0 || bytes >= 0x1p63) return std::nullopt;
  return static_cast<int64_t>(bytes);
}

std::string format_integer(int64_t value) { return std::to_string(value); }

std::string format_real(double value) {
  std::array<char, 32> buffer;
  const auto [end, error] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  std::string text(buffer.data(), end);
  // YAML 1.1 readers take "3e-05" for text and "8" for an integer.
  if (text.find('.') == std::string::npos) {
    const size_t e = text.find('e');
    text.insert(e == std::string::npos ? text.size() : e, ".0");
  }
  return text;
}

std::string format_flag(bool value) { return value ? "true" : "false"; }

std::string format_bytes_or_auto(int64_t value) {
  if (value < 0) return "auto";
  for (const auto& [unit, size] : byte_units) {
    const bool binary = unit.size() == 3;
    if (binary && value > 0 && value % size == 0) return std::to_string(value / size) + std::string(unit);
  }
  return std::to_string(value);
}

std::string format_text(std::string_view value) {
  if (is_plain_text(value)) return std::string(value);
  std::string quoted = "\"";
  for (char c : value) {
    const unsigned char u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (c == '\n') {
      quoted += "\\n";
    } else if (c == '\t') {
      quoted += "\\t";
    } else if (u < 0x20 || u == 0x7F) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\x%02x", u);
      quoted += escape;
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

std::string format_list(const std::vector<std::string>& value) {
  std::vector<std::string> parts;
  for (const std::string& item : value) parts.push_back(format_text(item));
  return "[" + join(parts, ", ") + "]";
}

std::string integer_range(int64_t min, int64_t max) {
  if (min == int64_min && max == int64_max) return "";
  if (max == int64_max) return "at least " + std::to_string(min);
  if (min == int64_min) return "at most " + std::to_string(max);
  return "from " + std::to_string(min) + " to " + std::to_string(max);
}

std::string real_range(double min, double max) {
  const auto bound = [](double value) {
    const std::string text = format_real(value);
    return text.ends_with(".0") ? text.substr(0, text.size() - 2) : text;
  };
  const bool below = std::isfinite(min) && min > std::numeric_limits<double>::lowest();
  const bool above = std::isfinite(max) && max < std::numeric_limits<double>::max();
  if (below && above) return "from " + bound(min) + " to " + bound(max);
  if (below) return "at least " + bound(min);
  if (above) return "at most " + bound(max);
  return "";
}

std::string join(const std::vector<std::string>& parts, std::string_view separator) {
  std::string joined;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) joined += separator;
    joined += parts[i];
  }
  return joined;
}

}  // namespace dms
