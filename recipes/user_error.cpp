#include "recipes/user_error.h"

#include <algorithm>
#include <cctype>
#include <numeric>
#include <utility>

namespace dms {
namespace {

std::string format_message(const std::string& where, const std::string& problem,
                           const std::vector<std::string>& details) {
  std::string message = where.empty() ? problem : where + ": " + problem;
  for (const std::string& line : details) message += "\n  " + line;
  return message;
}

std::string fold(std::string_view name) {
  std::string folded(name);
  for (char& c : folded) c = c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return folded;
}

// Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours cost one each.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before_last(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  std::iota(last.begin(), last.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before_last[j - 2] + 1);
      }
    }
    before_last.swap(last);
    last.swap(row);
  }
  return last[b.size()];
}

// Two edits in a three-letter name make another name; in a long one they are a slip.
size_t plausible_edits(size_t length) {
  if (length <= 3) return 1;
  return std::max<size_t>(2, length / 3);
}

}  // namespace

UserError::UserError(std::string where, std::string what, std::vector<std::string> details)
    : std::runtime_error(format_message(where, what, details)),
      where_(std::move(where)),
      problem_(std::move(what)),
      details_(std::move(details)) {}

std::string nearest_name(std::string_view name, std::span<const std::string> candidates) {
  constexpr size_t longest_name = 200;  // longer input is no misspelling, and the distance is quadratic
  if (name.empty() || name.size() > longest_name) return "";
  const std::string folded = fold(name);
  std::string nearest;
  size_t nearest_distance = plausible_edits(name.size()) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(folded, fold(candidate));
    if (distance < nearest_distance) {
      nearest_distance = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::string did_you_mean(std::string_view name, std::span<const std::string> candidates) {
  const std::string nearest = nearest_name(name, candidates);
  return nearest.empty() ? "" : "did you mean '" + nearest + "'?";
}

}  // namespace dms
