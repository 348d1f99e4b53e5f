#include "data/answer_grading.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>

namespace dms {

namespace {

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front())) != 0) text.remove_prefix(1);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) text.remove_suffix(1);
  return text;
}

bool is_digits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
}

std::string lowered(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(), [](unsigned char c) { return std::tolower(c); });
  return result;
}

// The integer that a text of digits means, with an optional sign, thousands commas and surrounding dollar signs.
std::optional<int64_t> integer_of(std::string_view raw) {
  std::string text(trimmed(raw));
  for (const char* mark : {"$", ",", "\\!", "\\,", "{", "}", " "}) replace_all(text, mark, "");
  const bool negative = text.starts_with("-");
  if (negative) text.erase(0, 1);
  if (!is_digits(text) || text.size() > 18) return std::nullopt;
  const int64_t value = std::stoll(text);
  return negative ? -value : value;
}

// \frac12 -> \frac{1}{2}, \frac1{72} -> \frac{1}{72}; braces that are there already stay.
std::string with_braced_fractions(const std::string& text) {
  constexpr std::string_view kFraction = "\\frac";
  std::string result;
  size_t at = 0;
  while (true) {
    const size_t found = text.find(kFraction, at);
    result += text.substr(at, found == std::string::npos ? found : found - at);
    if (found == std::string::npos) return result;
    result += kFraction;
    at = found + kFraction.size();
    for (int part = 0; part < 2 && at < text.size() && text[at] != '{'; ++part) {
      // A bare numerator may be followed by a braced denominator.
      result += '{';
      result += text[at++];
      result += '}';
    }
  }
}

// \sqrt3 -> \sqrt{3}
std::string with_braced_roots(const std::string& text) {
  constexpr std::string_view kRoot = "\\sqrt";
  std::string result;
  size_t at = 0;
  while (true) {
    const size_t found = text.find(kRoot, at);
    result += text.substr(at, found == std::string::npos ? found : found - at);
    if (found == std::string::npos) return result;
    result += kRoot;
    at = found + kRoot.size();
    if (at < text.size() && text[at] != '{' && text[at] != '[') {
      result += '{';
      result += text[at++];
      result += '}';
    }
  }
}

// "3/4" -> \frac{3}{4}, for integers alone.
std::string with_plain_fraction(const std::string& text) {
  const size_t slash = text.find('/');
  if (slash == std::string::npos || text.find('/', slash + 1) != std::string::npos) return text;
  const std::string_view above = std::string_view(text).substr(0, slash),
                         below = std::string_view(text).substr(slash + 1);
  const std::string_view digits = above.starts_with('-') ? above.substr(1) : above;
  if (!is_digits(digits) || !is_digits(below)) return text;
  return "\\frac{" + std::string(above) + "}{" + std::string(below) + "}";
}

}  // namespace

std::optional<std::string_view> text_after_reasoning(std::string_view text, bool began_with_think) {
  constexpr std::string_view kEnd = "</think>";
  const size_t end = text.rfind(kEnd);
  if (end != std::string_view::npos) return text.substr(end + kEnd.size());
  if (began_with_think || text.find("<think>") != std::string_view::npos) return std::nullopt;
  return text;
}

std::optional<std::string> last_boxed(std::string_view text) {
  size_t at = std::string_view::npos, length = 0;
  for (const std::string_view mark : {"\\boxed", "\\fbox"}) {
    const size_t found = text.rfind(mark);
    if (found != std::string_view::npos && (at == std::string_view::npos || found > at)) {
      at = found;
      length = mark.size();
    }
  }
  if (at == std::string_view::npos) return std::nullopt;
  std::string_view rest = text.substr(at + length);
  if (rest.starts_with(' ')) {
    rest.remove_prefix(1);
    return std::string(rest.substr(0, rest.find_first_of(" $\n")));
  }
  if (!rest.starts_with('{')) return std::nullopt;
  int depth = 0;
  for (size_t i = 0; i < rest.size(); ++i) {
    depth += rest[i] == '{' ? 1 : rest[i] == '}' ? -1 : 0;
    if (depth == 0) return std::string(rest.substr(1, i - 1));
  }
  return std::nullopt;
}

std::optional<int64_t> answered_integer(std::string_view text) {
  std::optional<std::string> given = last_boxed(text);
  if (!given) {
    const size_t first = text.find('$'), last = text.rfind('$');
    if (first == std::string_view::npos || first == last) return std::nullopt;
    given = std::string(text.substr(first + 1, last - first - 1));
  }
  // "x = 204" answers with what is right of the sign.
  const size_t equals = given->rfind('=');
  return integer_of(equals == std::string::npos ? std::string_view(*given)
                                                : std::string_view(*given).substr(equals + 1));
}

bool grades_as_integer(std::string_view text, std::string_view answer) {
  const std::optional<int64_t> expected = integer_of(answer);
  return expected.has_value() && answered_integer(text) == expected;
}

std::optional<char> chosen_letter(std::string_view text) {
  const std::string lower = lowered(text);
  for (size_t at = 0; (at = lower.find("answer", at)) != std::string::npos; ++at) {
    size_t next = at + 6;
    const auto skip = [&](std::string_view marks) {
      while (next < lower.size() && marks.find(lower[next]) != std::string_view::npos) ++next;
    };
    skip(" \t*");
    if (next >= lower.size() || lower[next] != ':') continue;
    ++next;
    skip(" \t*$([");
    const bool ends = next + 1 >= lower.size() || std::isalnum(static_cast<unsigned char>(lower[next + 1])) == 0;
    if (next < lower.size() && lower[next] >= 'a' && lower[next] <= 'd' && ends) {
      return static_cast<char>(std::toupper(lower[next]));
    }
  }
  std::string boxed = lowered(last_boxed(text).value_or(""));
  for (const char* mark : {"\\text", "\\mathrm", "\\textbf", "{", "}", "(", ")", " ", "."})
    replace_all(boxed, mark, "");
  if (boxed.size() == 1 && boxed[0] >= 'a' && boxed[0] <= 'd') return static_cast<char>(std::toupper(boxed[0]));
  return std::nullopt;
}

std::string normalised_math(std::string_view raw) {
  std::string text(raw);
  replace_all(text, "\n", "");
  replace_all(text, "\\!", "");
  replace_all(text, "\\\\", "\\");
  replace_all(text, "tfrac", "frac");
  replace_all(text, "dfrac", "frac");
  for (const char* dropped : {"\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%", "%"})
    replace_all(text, dropped, "");
  // Units stand at the end: "5 \text{ cm}".
  const size_t unit = text.rfind("\\text{ ");
  if (unit != std::string::npos && unit > 0) text.erase(unit);
  replace_all(text, " .", " 0.");
  replace_all(text, "{.", "{0.");
  if (text.empty()) return text;
  if (text.front() == '.') text.insert(0, "0");
  // "k = 5": a short name on the left of the only sign.
  const size_t equals = text.find('=');
  if (equals != std::string::npos && text.find('=', equals + 1) == std::string::npos && equals <= 2) {
    text.erase(0, equals + 1);
  }
  text = with_braced_roots(text);
  replace_all(text, " ", "");
  text = with_braced_fractions(text);
  if (text == "0.5") text = "\\frac{1}{2}";
  return with_plain_fraction(text);
}

std::optional<std::string> answered_math(std::string_view text) {
  constexpr std::string_view kMark = "answer:";
  const std::string lower = lowered(text);
  for (size_t at = lower.rfind(kMark); at != std::string::npos; at = at == 0 ? at : lower.rfind(kMark, at - 1)) {
    const size_t line = lower.rfind('\n', at) + 1;  // 0 on the first line
    if (lower.find_first_not_of(" \t*#>\"", line) != at) {
      if (at == 0) break;
      continue;
    }
    std::string_view rest = text.substr(at + kMark.size());
    // A box on this line or later has the last word.
    if (rest.find("\\boxed") != std::string_view::npos || rest.find("\\fbox") != std::string_view::npos) break;
    rest = trimmed(rest.substr(0, rest.find('\n')));
    while (!rest.empty() &&
           (rest.front() == '*' || rest.front() == '$' || rest.front() == '"' || rest.front() == ' ')) {
      rest.remove_prefix(1);
    }
    while (!rest.empty() && (rest.back() == '*' || rest.back() == '$' || rest.back() == '"' || rest.back() == '.' ||
                             rest.back() == ' ')) {
      rest.remove_suffix(1);
    }
    if (!rest.empty()) return std::string(rest);
    break;
  }
  return last_boxed(text);
}

bool grades_as_math(std::string_view text, std::string_view answer) {
  const std::optional<std::string> given = answered_math(text);
  return given && normalised_math(*given) == normalised_math(answer);
}

double share_of_needles(std::string_view text, const std::vector<std::string>& needles) {
  if (needles.empty()) return 0.0;
  const std::string lower = lowered(text);
  const auto found = std::count_if(needles.begin(), needles.end(), [&](const std::string& needle) {
    return lower.find(lowered(needle)) != std::string::npos;
  });
  return static_cast<double>(found) / static_cast<double>(needles.size());
}

}  // namespace dms
