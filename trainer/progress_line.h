// Progress on stderr: one line rewritten in place on a terminal, a new line every few seconds otherwise.
#pragma once

#include <chrono>
#include <string>

namespace dms {

// "1h 02m", "3m 05s", "12s".
std::string format_duration(double seconds);

class ProgressLine {
 public:
  explicit ProgressLine(bool speaks = true);  // false: says nothing
  ~ProgressLine();                            // ends the line
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // `done` of `total` units; the ETA follows from the time since construction and `done_at_start`.
  void update(const std::string& text, int64_t done, int64_t total);
  // A line of its own, kept on the screen.
  void note(const std::string& text);

 private:
  const bool speaks_, terminal_;
  const std::chrono::steady_clock::time_point begin_;
  std::chrono::steady_clock::time_point last_printed_;
  int64_t first_done_ = -1;
  bool line_open_ = false;
};

}  // namespace dms
