// Whether a model's text answers a benchmark's question: what AIME, GPQA, MATH and RULER's needle tasks count as right.
// The rules are those of the public harnesses (lm-evaluation-harness, simple-evals): the last \boxed{} with balanced
// braces, the first "Answer: X", string equality after the normalisation of the MATH benchmark, substrings.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dms {

// The text after the last </think>, the whole text when it holds none; nothing when reasoning began and never ended.
std::optional<std::string_view> text_after_reasoning(std::string_view text, bool began_with_think);

// The content of the last \boxed{...} or \fbox{...}; "\boxed 5" ends at the next space.  Nothing where braces do not close.
std::optional<std::string> last_boxed(std::string_view text);

// AIME: the integer in the last \boxed{}, or else between the first and the last dollar sign.
std::optional<int64_t> answered_integer(std::string_view text);
bool grades_as_integer(std::string_view text, std::string_view answer);

// Multiple choice: "Answer: C" (the first such mark, any case, with or without dollar signs or brackets), or a boxed letter.
std::optional<char> chosen_letter(std::string_view text);

// MATH: what stands in the last \boxed{} or after the last "ANSWER:" that begins a line, whichever comes later; right when
// it equals `answer` after normalised_math().
std::optional<std::string> answered_math(std::string_view text);
bool grades_as_math(std::string_view text, std::string_view answer);
// One spelling for what the MATH benchmark takes for the same: fractions, roots, units, degrees, spaces, leading zeros.
std::string normalised_math(std::string_view text);

// Share of `needles` that the text contains, in any case.
double share_of_needles(std::string_view text, const std::vector<std::string>& needles);

}  // namespace dms
