// UserError: the user's input is wrong (exit code 2), as opposed to a failure of the world (exit code 1) or a bug
// (TORCH_CHECK).  One message says where, what was found, what was expected and what to do next:
//
//   my-run.yaml:14:3: unknown option 'compression.ramp_step'
//     options here: final, loss_weight, ramp_steps
//     did you mean 'ramp_steps'?
#pragma once

#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace dms {

class UserError : public std::runtime_error {
 public:
  // `where`: file[:line[:column]] or flag; may be empty.  `what`: the fault, with the offending value.
  // `details`: further lines (expected values, the next step), printed indented below.
  UserError(std::string where, std::string what, std::vector<std::string> details = {});

  const std::string& where() const { return where_; }
  const std::string& problem() const { return problem_; }
  const std::vector<std::string>& details() const { return details_; }

 private:
  std::string where_;
  std::string problem_;
  std::vector<std::string> details_;
};

// The run stopped because a signal asked it to, after saving what it had: exit code 3.
class Interrupted : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The candidate closest to `name` by edit distance, or "" when none is near enough to be a plausible misspelling.
// Case and '-' against '_' count as no distance; two swapped neighbours as one edit.  The first wins a tie.
std::string nearest_name(std::string_view name, std::span<const std::string> candidates);

// "did you mean 'x'?" or "" when nothing is near.
std::string did_you_mean(std::string_view name, std::span<const std::string> candidates);

}  // namespace dms
