// Whether this machine can do what a run needs, and how fast: versions, devices, memory, disk, the link between two
// ranks, and every attention kernel against the dense float64 reference on the device it will run on.
#pragma once

#include <string>
#include <vector>

namespace dms {

struct Check {
  std::string name;
  bool passed = true;
  std::string found;    // a version, a rate, or what exactly failed
  std::string remedy;   // when it failed
  double value = -1.0;  // the number in `found`, in base units; -1: none
};

struct DoctorOptions {
  std::string directory = ".";  // whose disk a run would write to
  std::string version;          // of this program
};

// Takes some seconds.  Every check is made, whatever failed before it.
std::vector<Check> examine(const DoctorOptions& options);

// What each of the two ranks does that examine() starts to check and measure the link, between processors (Gloo) or GPUs
// (NCCL): rank 0 writes bytes/s into `file`.  Throws what went wrong.
void measure_link_as_rank(const std::string& file, bool on_gpu);

}  // namespace dms
