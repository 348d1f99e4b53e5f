#include "tools/openmp_waiting.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstdlib>
#include <string_view>
#include <thread>

namespace dms {

namespace {

constexpr const char* kSpins = "1000";  // libgomp's own choice where threads outnumber cores
constexpr std::array<std::string_view, 7> kComputing{"train",    "eval",   "eval-tasks", "generate",
                                                     "retarget", "recall", "bench"};

bool uses_one_thread() {
  const char* threads = std::getenv("OMP_NUM_THREADS");
  return std::thread::hardware_concurrency() == 1 || (threads != nullptr && std::string_view(threads) == "1");
}

}  // namespace

void limit_openmp_spinning(int argc, char** argv) {
  if (argc < 2 || std::find(kComputing.begin(), kComputing.end(), argv[1]) == kComputing.end()) return;
  if (std::getenv("GOMP_SPINCOUNT") != nullptr || std::getenv("OMP_WAIT_POLICY") != nullptr || uses_one_thread())
    return;
  char program[PATH_MAX];
  const ssize_t length = ::readlink("/proc/self/exe", program, sizeof(program) - 1);
  if (length <= 0) return;
  program[length] = '\0';
  ::setenv("GOMP_SPINCOUNT", kSpins, 1);
  ::execv(program, argv);  // returns only where it failed: then threads wait as they did
}

}  // namespace dms
