// Starts the ranks of a run on this host (`--nproc N`) and stays with them: each is this program again, told its place
// by the variables that torchrun would set.  No rank outlives the launcher.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace dms {

struct LaunchOptions {
  int64_t num_ranks = 1;
  int64_t max_restarts = 0;            // how often a run that lost a rank is started again
  std::vector<std::string> arguments;  // of each rank's program
  std::vector<std::string> restart_arguments;
  std::function<bool()> stop_requested = [] { return false; };  // asked often; passed on to the ranks as SIGTERM
  std::string speaker;                                          // begins each message on stderr
};

// Returns the exit code: 0 when all ranks are done, 3 when they stopped after saving, else that of the first to fail
// (1 when a signal killed it).  The others have ended within seconds of it.
int launch_local_ranks(const LaunchOptions& options);

}  // namespace dms
