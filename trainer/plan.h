// What a recipe costs before anything is loaded: bytes per rank by category and seconds per step, in closed form from
// config.json's dimensions.  The formulas follow trainer/step.cpp, trainer/warm_start.cpp and model/student_layer.cpp;
// tools/check_plan.py holds them against real runs.  What they leave out is the process itself (libraries, threads),
// stated as DeviceRates::process_bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/architecture.h"
#include "trainer/recipe.h"

namespace dms {

// The rates that a plan divides by.
struct DeviceRates {
  std::string name;
  double gemm_flops_per_s = 0.0;  // dense, in the compute dtype
  double efficiency = 0.0;        // share of it that a step reaches
  double memory_bytes = 0.0;      // per rank
  int64_t process_bytes = 0;      // of it, what a process takes whose model is nothing: libraries, threads
  double link_bytes_per_s = 0.0;  // that one rank receives in an all-gather
  double host_bytes_per_s = 0.0;  // from the host's memory to the device; 0: they are the same
  bool measured = false;
  std::string source;
};
// h100, h200, a100: published figures.
const std::vector<DeviceRates>& published_devices();
// This machine, shared by `num_ranks`: a GEMM and the free memory are measured, in half a second.
DeviceRates measure_this_machine(at::ScalarType dtype, int64_t num_ranks);

struct RankBytes {
  int64_t weights = 0;      // that stay
  int64_t buffers = 0;      // whole layers gathered or converted in passing
  int64_t activations = 0;  // kept between forward and backward, and what one layer's backward needs
  int64_t adapters = 0;     // with gradients
  int64_t optimizer = 0;
  int64_t head = 0;        // logits and their gradient; before the backward pass begins
  int64_t warm_start = 0;  // before the first step
  int64_t total = 0;       // the peak: head, a layer's backward pass and the warm start are not there at once
};

struct Plan {
  RankBytes per_rank;
  double compute_seconds = 0.0;
  double communication_seconds = 0.0;  // weights that are gathered or come from the host, while others compute
  double step_seconds = 0.0;
  int64_t tokens = 0;  // of the whole training, warm start included
  double hours = 0.0;
  bool fits = false;
  int64_t largest_sequence = 0;          // that fits, a multiple of 1024 (of 64 below 1024); 0: none
  std::vector<std::string> suggestions;  // when it does not fit
};

// Settles what "auto" means on `num_ranks` of such a device, of whose memory a fifth stays free.  Throws UserError when a
// setting cannot be honoured.
void settle_for_device(Recipe& recipe, const Architecture& architecture, int64_t num_ranks, const DeviceRates& device);

// `recipe` as it is settled: no "auto".
Plan make_plan(const Recipe& recipe, const Architecture& architecture, int64_t num_ranks, const DeviceRates& device);

}  // namespace dms
