// Runs a program as a child: its output, its exit code, and an end after a time limit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dms {

struct ChildOptions {
  double timeout_seconds = 60.0;
  std::string directory = "";                 // current directory; empty = the parent's
  std::vector<std::string> environment = {};  // "NAME=value", added to the parent's
  int64_t file_size_limit_bytes = -1;         // RLIMIT_FSIZE; a write beyond it fails with EFBIG as on a full disk
  bool bound_by_permissions = false;          // even when started by root
};

struct ChildResult {
  int exit_code = -1;      // -1 when a signal ended it
  int signal = 0;          // 0 when it ended by itself
  bool timed_out = false;  // it was killed at the limit
  std::string out, err;
};

// Throws std::runtime_error when the program cannot be started.
ChildResult run_child(const std::vector<std::string>& argv, const ChildOptions& options = {});

// A child in the background, for tests that signal it.  The destructor kills it if it still runs.
class ChildProcess {
 public:
  explicit ChildProcess(const std::vector<std::string>& argv, const ChildOptions& options = {});
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  int64_t pid() const { return pid_; }
  void send(int signal_number);
  // Reads until `text` appeared on stdout or stderr; false when the child ended or the time was up before that.
  bool wait_for_output(const std::string& text);
  ChildResult wait();

 private:
  bool read_some();  // false at the end of both streams or the time limit

  int64_t pid_ = -1;
  int out_ = -1, err_ = -1;
  double deadline_seconds_ = 0.0;
  ChildResult result_;
};

}  // namespace dms
