#include "tools/number_text.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

namespace dms {
namespace {

constexpr const char* kNotANumber = "–";

std::string fixed_text(double value, int num_decimals) {
  char buffer[400];  // the largest double has 309 digits before the point
  std::snprintf(buffer, sizeof buffer, "%.*f", num_decimals, value);
  return buffer;
}

// Puts a comma between thousands of the part before the point.
std::string with_separators(std::string digits) {
  size_t end = digits.find('.');
  if (end == std::string::npos) end = digits.size();
  const size_t begin = digits.starts_with('-') ? 1 : 0;
  for (size_t i = end; i > begin + 3; i -= 3) digits.insert(i - 3, ",");
  return digits;
}

}  // namespace

std::string count_text(int64_t count) { return with_separators(std::to_string(count)); }

std::string significant_text(double value, int num_digits) {
  if (!std::isfinite(value)) return kNotANumber;
  if (value == 0) return "0";
  // Through the rounded value, so that 0.09999 with two digits becomes 0.10 and not 0.100.
  char rounded[64];
  std::snprintf(rounded, sizeof rounded, "%.*e", num_digits - 1, value);
  const int exponent = std::atoi(std::string(rounded).substr(std::string(rounded).find('e') + 1).c_str());
  if (exponent < -4 || exponent > 14) {
    const std::string text = rounded;
    return text.substr(0, text.find('e')) + "e" + std::to_string(exponent);
  }
  return with_separators(fixed_text(value, std::max(0, num_digits - 1 - exponent)));
}

std::string percent_text(double share) {
  if (!std::isfinite(share)) return kNotANumber;
  const double percent = 100 * share;
  std::string text = fixed_text(percent, std::abs(percent) < 10 ? 2 : 1);
  while (text.ends_with('0')) text.pop_back();
  if (text.ends_with('.')) text.pop_back();
  return (text == "-0" ? "0" : text) + "%";
}

std::string bytes_text(double num_bytes) {
  if (!std::isfinite(num_bytes)) return kNotANumber;
  constexpr std::array<const char*, 6> kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t unit = 0;
  while (std::abs(num_bytes) >= 1024 && unit + 1 < kUnits.size()) {
    num_bytes /= 1024;
    ++unit;
  }
  if (unit == 0) return count_text(std::llround(num_bytes)) + " B";
  return significant_text(num_bytes, num_bytes >= 1000 ? 4 : 3) + " " + kUnits[unit];
}

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds)) return kNotANumber;
  if (seconds < 60) return significant_text(seconds, seconds < 1 ? 2 : 3) + " s";
  const int64_t whole = std::llround(seconds);
  if (whole < 3600) return std::to_string(whole / 60) + " min " + std::to_string(whole % 60) + " s";
  return count_text(whole / 3600) + " h " + std::to_string(whole % 3600 / 60) + " min";
}

std::string parameters_text(int64_t count) {
  const double value = static_cast<double>(count);
  if (count < 1'000'000) return count_text(count);
  if (count < 1'000'000'000) return significant_text(value / 1e6, count < 100'000'000 ? 3 : 4) + "M";
  return significant_text(value / 1e9, 3) + "B";
}

}  // namespace dms
