#include "trainer/ranks_launcher.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>

#include "trainer/launch_environment.h"
#include "trainer/ranks.h"

namespace dms {

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kInterrupted = 3, kWrongInput = 2, kFailed = 1;
// For the other ranks to notice and end by themselves.
constexpr std::chrono::seconds kGrace{6};

std::string this_host() {
  char name[256] = "";
  ::gethostname(name, sizeof(name) - 1);
  return name;
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

struct Rank {
  pid_t pid = -1;
  bool running = false;
};

class LocalRanks {
 public:
  LocalRanks(const LaunchOptions& options, const std::vector<std::string>& arguments)
      : options_(options), store_(serve_rank_store()) {
    for (int64_t r = 0; r < options.num_ranks; ++r) ranks_.push_back(start(arguments, r));
  }
  ~LocalRanks() { end_all(); }

  int wait() {
    bool told_to_stop = false, interrupted = false;
    int failure = 0;
    Clock::time_point failed_at;
    while (std::any_of(ranks_.begin(), ranks_.end(), [](const Rank& rank) { return rank.running; })) {
      if (!told_to_stop && options_.stop_requested()) {
        told_to_stop = true;
        for (const Rank& rank : ranks_) {
          if (rank.running) ::kill(rank.pid, SIGTERM);
        }
      }
      if (failure != 0 && Clock::now() - failed_at > kGrace) end_all();
      for (size_t r = 0; r < ranks_.size(); ++r) {
        const int code = code_if_ended(r, failure != 0);
        if (code == kInterrupted) interrupted = true;
        if (code <= 0 || code == kInterrupted || failure != 0) continue;
        failure = code;
        failed_at = Clock::now();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return failure != 0 ? failure : interrupted ? kInterrupted : 0;
  }

 private:
  Rank start(const std::vector<std::string>& arguments, int64_t rank) const {
    EnvironmentVariables variables = current_environment();
    const std::string size = std::to_string(options_.num_ranks);
    variables["RANK"] = variables["LOCAL_RANK"] = std::to_string(rank);
    variables["WORLD_SIZE"] = variables["LOCAL_WORLD_SIZE"] = size;
    variables["MASTER_ADDR"] = "127.0.0.1";
    variables["MASTER_PORT"] = std::to_string(store_->port());
    variables["TORCHELASTIC_USE_AGENT_STORE"] = "True";
    variables.erase("TORCHELASTIC_RESTART_COUNT");
    const auto threads = std::max<int64_t>(1, std::thread::hardware_concurrency() / options_.num_ranks);
    variables.emplace("OMP_NUM_THREADS", std::to_string(threads));
    variables.emplace("TORCH_CPP_LOG_LEVEL", "ERROR");  // connection troubles: ours are the words

    // All memory is ready before fork(): another thread serves the store, so the child may only make system calls.
    std::vector<std::string> environment, argv{"dms"};
    for (const auto& [name, value] : variables) environment.push_back(name + "=" + value);
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    const std::vector<char*> environment_pointers = pointers_to(environment), argv_pointers = pointers_to(argv);
    const pid_t parent = ::getpid(), child = ::fork();
    if (child < 0) throw std::runtime_error(std::string("cannot start a rank: ") + std::strerror(errno));
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) ::_exit(kFailed);
      ::execve("/proc/self/exe", argv_pointers.data(), environment_pointers.data());
      ::_exit(127);
    }
    return {child, true};
  }

  // -1 while it runs.  A rank that a signal killed left no message of its own.
  int code_if_ended(size_t r, bool quiet) {
    Rank& rank = ranks_[r];
    int status = 0;
    if (!rank.running || ::waitpid(rank.pid, &status, WNOHANG) != rank.pid) return -1;
    rank.running = false;
    if (WIFEXITED(status)) return WEXITSTATUS(status);
    if (!quiet && store_->record_failure(kFailed)) {
      const int signal_number = WTERMSIG(status);
      std::fprintf(stderr, "%s: rank %zu on %s: killed by signal %d (%s)%s\n", options_.speaker.c_str(), r,
                   this_host().c_str(), signal_number, ::strsignal(signal_number),
                   signal_number == SIGKILL ? "; if nobody did that, the machine ran out of memory" : "");
    }
    return kFailed;
  }

  void end_all() {
    for (Rank& rank : ranks_) {
      if (rank.running) ::kill(rank.pid, SIGKILL);
    }
    for (Rank& rank : ranks_) {
      if (rank.running) ::waitpid(rank.pid, nullptr, 0);
      rank.running = false;
    }
  }

  const LaunchOptions& options_;
  const std::unique_ptr<RankStore> store_;
  std::vector<Rank> ranks_;
};

}  // namespace

int launch_local_ranks(const LaunchOptions& options) {
  for (int64_t restart = 0;; ++restart) {
    const int code = LocalRanks(options, restart == 0 ? options.arguments : options.restart_arguments).wait();
    if (code == 0 || code == kInterrupted || code == kWrongInput || restart == options.max_restarts ||
        options.stop_requested()) {
      return code;
    }
    std::fprintf(stderr, "%s: restart %ld of %ld, from the newest checkpoint\n", options.speaker.c_str(), restart + 1,
                 options.max_restarts);
  }
}

}  // namespace dms
