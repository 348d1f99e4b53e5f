#include "trainer/progress_line.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>

namespace dms {

namespace {
constexpr double kSecondsBetweenLines = 10.0;  // when stderr is a file
}

std::string format_duration(double seconds) {
  const auto total = static_cast<int64_t>(std::llround(seconds));
  char text[64];
  if (total >= 3600) {
    std::snprintf(text, sizeof(text), "%ldh %02ldm", total / 3600, total / 60 % 60);
  } else if (total >= 60) {
    std::snprintf(text, sizeof(text), "%ldm %02lds", total / 60, total % 60);
  } else {
    std::snprintf(text, sizeof(text), "%lds", total);
  }
  return text;
}

ProgressLine::ProgressLine(bool speaks)
    : speaks_(speaks), terminal_(isatty(STDERR_FILENO) != 0), begin_(std::chrono::steady_clock::now()) {}

ProgressLine::~ProgressLine() {
  if (line_open_) std::fputc('\n', stderr);
}

void ProgressLine::update(const std::string& text, int64_t done, int64_t total) {
  if (!speaks_) return;
  const auto now = std::chrono::steady_clock::now();
  if (first_done_ < 0) first_done_ = done - 1;
  const bool due = std::chrono::duration<double>(now - last_printed_).count() >= kSecondsBetweenLines;
  if (!terminal_ && !due && done < total) return;
  last_printed_ = now;
  const double elapsed = std::chrono::duration<double>(now - begin_).count();
  const double remaining =
      elapsed / static_cast<double>(std::max<int64_t>(1, done - first_done_)) * static_cast<double>(total - done);
  std::fprintf(stderr, "%s%s  ETA %s%s", terminal_ ? "\r" : "", text.c_str(), format_duration(remaining).c_str(),
               terminal_ ? "\033[K" : "\n");
  line_open_ = terminal_;
}

void ProgressLine::note(const std::string& text) {
  if (!speaks_) return;
  if (line_open_) std::fputs("\r\033[K", stderr);
  line_open_ = false;
  std::fprintf(stderr, "%s\n", text.c_str());
}

}  // namespace dms
