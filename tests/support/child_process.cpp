#include "tests/support/child_process.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <stdexcept>

namespace dms {
namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void close_descriptor(int& descriptor) {
  if (descriptor >= 0) close(descriptor);
  descriptor = -1;
}

// Between fork and exec.  Returns only on failure, with errno set.
void become(char* const* argv, char* const* environment, const ChildOptions& options) {
  if (!options.directory.empty() && chdir(options.directory.c_str()) != 0) return;
  if (options.file_size_limit_bytes >= 0) {
    const rlim_t limit = static_cast<rlim_t>(options.file_size_limit_bytes);
    const rlimit both = {limit, limit};
    if (setrlimit(RLIMIT_FSIZE, &both) != 0) return;
    std::signal(SIGXFSZ, SIG_IGN);  // the write fails instead
  }
  // Another user could not read a program or a library below /root; root without this capability can.
  if (options.bound_by_permissions && geteuid() == 0 && prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE) != 0) return;
  execvpe(argv[0], argv, environment);
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& argv, const ChildOptions& options) {
  std::vector<char*> arguments, environment;
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  for (const std::string& variable : options.environment) environment.push_back(const_cast<char*>(variable.c_str()));
  for (char** variable = environ; *variable; ++variable) environment.push_back(*variable);
  environment.push_back(nullptr);

  int out[2], err[2], failure[2];
  if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0 || pipe2(failure, O_CLOEXEC) != 0) {
    throw std::runtime_error("pipe2: " + std::string(std::strerror(errno)));
  }
  const pid_t pid = fork();
  if (pid < 0) throw std::runtime_error("fork: " + std::string(std::strerror(errno)));
  if (pid == 0) {
    const int null = open("/dev/null", O_RDONLY);
    dup2(null, STDIN_FILENO);
    dup2(out[1], STDOUT_FILENO);
    dup2(err[1], STDERR_FILENO);
    become(arguments.data(), environment.data(), options);
    const int error = errno;
    [[maybe_unused]] const ssize_t written = write(failure[1], &error, sizeof error);
    _exit(127);
  }
  close(out[1]);
  close(err[1]);
  close(failure[1]);
  int error = 0;
  const bool failed = read(failure[0], &error, sizeof error) == sizeof error;  // closed by a successful exec
  close(failure[0]);
  pid_ = pid;
  out_ = out[0];
  err_ = err[0];
  deadline_seconds_ = now_seconds() + options.timeout_seconds;
  if (failed) {
    wait();
    throw std::runtime_error("cannot start " + argv[0] + ": " + std::strerror(error));
  }
}

ChildProcess::~ChildProcess() {
  if (pid_ > 0) {
    kill(static_cast<pid_t>(pid_), SIGKILL);
    waitpid(static_cast<pid_t>(pid_), nullptr, 0);
  }
  close_descriptor(out_);
  close_descriptor(err_);
}

void ChildProcess::send(int signal_number) {
  if (pid_ > 0) kill(static_cast<pid_t>(pid_), signal_number);
}

bool ChildProcess::read_some() {
  if (out_ < 0 && err_ < 0) return false;
  const double left = deadline_seconds_ - now_seconds();
  if (left <= 0.0) {
    result_.timed_out = true;
    return false;
  }
  pollfd watched[2] = {{out_, POLLIN, 0}, {err_, POLLIN, 0}};
  poll(watched, 2, static_cast<int>(std::min(left, 1.0) * 1000.0) + 1);
  char buffer[65536];
  for (int i = 0; i < 2; ++i) {
    if (watched[i].fd < 0 || watched[i].revents == 0) continue;
    const ssize_t count = read(watched[i].fd, buffer, sizeof buffer);
    if (count > 0) {
      (i == 0 ? result_.out : result_.err).append(buffer, static_cast<size_t>(count));
    } else if (count == 0 || errno != EINTR) {
      close_descriptor(i == 0 ? out_ : err_);
    }
  }
  return true;
}

bool ChildProcess::wait_for_output(const std::string& text) {
  const auto seen = [&] {
    return result_.out.find(text) != std::string::npos || result_.err.find(text) != std::string::npos;
  };
  while (!seen()) {
    if (!read_some()) return seen();
  }
  return true;
}

ChildResult ChildProcess::wait() {
  while (read_some()) {
  }
  if (result_.timed_out) kill(static_cast<pid_t>(pid_), SIGKILL);
  int status = 0;
  waitpid(static_cast<pid_t>(pid_), &status, 0);
  pid_ = -1;
  if (WIFEXITED(status)) result_.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) result_.signal = WTERMSIG(status);
  return result_;
}

ChildResult run_child(const std::vector<std::string>& argv, const ChildOptions& options) {
  ChildProcess child(argv, options);
  return child.wait();
}

}  // namespace dms
