#include "tools/openmp_waiting.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <climits>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>
#include <thread>

namespace dms {

namespace {

constexpr const char* kSpins = "1000";  // libgomp's own choice where threads outnumber cores
constexpr double kBusyCores = 0.5;  // taken by others: what training then loses is more than it would lose by sleeping
constexpr std::array<std::string_view, 7> kComputing{"train",    "eval",   "eval-tasks", "generate",
                                                     "retarget", "recall", "bench"};

bool is_set(const char* name) { return std::getenv(name) != nullptr; }

bool uses_one_thread() {
  const char* threads = std::getenv("OMP_NUM_THREADS");
  return std::thread::hardware_concurrency() == 1 || (threads != nullptr && std::string_view(threads) == "1");
}

bool asks_for_help(int argc, char** argv) {
  return std::any_of(argv, argv + argc, [](std::string_view word) { return word == "--help" || word == "-h"; });
}

struct CpuTimes {  // of all cores since the start of the machine, in clock ticks
  int64_t busy = 0, all = 0;
};

CpuTimes cpu_times() {
  // "cpu  user nice system idle iowait irq softirq steal ..." (man 5 proc)
  std::ifstream file("/proc/stat");
  std::string name;
  file >> name;
  CpuTimes times;
  int64_t ticks = 0;
  for (int column = 0; column < 8 && file >> ticks; ++column) {
    times.all += ticks;
    if (column != 3 && column != 4) times.busy += ticks;
  }
  return times;
}

// Cores in use while this program sleeps for a moment.
double busy_cores() {
  const CpuTimes before = cpu_times();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const CpuTimes after = cpu_times();
  if (after.all <= before.all) return 0.0;
  return static_cast<double>(after.busy - before.busy) / static_cast<double>(after.all - before.all) *
         std::thread::hardware_concurrency();
}

}  // namespace

void limit_openmp_spinning(int argc, char** argv) {
  if (argc < 2 || std::find(kComputing.begin(), kComputing.end(), argv[1]) == kComputing.end()) return;
  if (asks_for_help(argc, argv)) return;
  if (is_set("GOMP_SPINCOUNT") || is_set("OMP_WAIT_POLICY") || uses_one_thread()) return;
  if (is_set("WORLD_SIZE") || is_set("SLURM_NTASKS") || is_set("OMPI_COMM_WORLD_SIZE")) return;
  if (busy_cores() < kBusyCores) return;
  char program[PATH_MAX];
  const ssize_t length = ::readlink("/proc/self/exe", program, sizeof(program) - 1);
  if (length <= 0) return;
  program[length] = '\0';
  ::setenv("GOMP_SPINCOUNT", kSpins, 1);
  ::execv(program, argv);  // returns only where it failed: then threads wait as they did
}

}  // namespace dms
