// Wall time of repeated work, as every benchmark reports it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <utility>
#include <vector>

#include "trainer/hardware.h"

namespace dms {

template <class Work>
double seconds_of(at::Device device, const Work& work) {
  synchronize(device);
  const auto begin = std::chrono::steady_clock::now();
  work();
  synchronize(device);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

struct Timing {
  double median = 0.0, min = 0.0, max = 0.0;
};

// At least one value.
inline Timing timing_of(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {(seconds[(seconds.size() - 1) / 2] + seconds[seconds.size() / 2]) / 2.0, seconds.front(), seconds.back()};
}

// Of `repeats` calls, after one that is not timed.
template <class Work>
Timing timing_of_repeats(at::Device device, int64_t repeats, const Work& work) {
  work();
  std::vector<double> seconds;
  for (int64_t i = 0; i < repeats; ++i) seconds.push_back(seconds_of(device, work));
  return timing_of(std::move(seconds));
}

}  // namespace dms
