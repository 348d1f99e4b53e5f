#include "tools/stop_signal.h"

#include <atomic>
#include <csignal>

namespace dms {
namespace {

std::atomic<bool> requested{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler may touch nothing else");

void request_stop(int) { requested = true; }

void install(int signal_number, int flags) {
  struct sigaction action = {};
  action.sa_handler = request_stop;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART | flags;
  sigaction(signal_number, &action, nullptr);
}

}  // namespace

void catch_stop_signals() {
  install(SIGTERM, 0);
  install(SIGUSR1, 0);                              // what Slurm's --signal sends ahead of the time limit
  install(SIGINT, static_cast<int>(SA_RESETHAND));  // whoever presses Ctrl-C twice does not want to wait
}

bool stop_requested() { return requested; }

}  // namespace dms
