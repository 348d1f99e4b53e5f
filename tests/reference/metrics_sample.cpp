// Writes one stretch of a run's metrics, for the reference test that opens them with TensorBoard's own reader:
//   metrics_sample RUN_DIR RESUME_STEP END_STEP LOSS_OFFSET
// The loss of step s is s + LOSS_OFFSET, so that the reader's answer is arithmetic.
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "trainer/metrics.h"

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const int64_t begin = std::atoll(argv[2]), end = std::atoll(argv[3]);
  try {
    dms::MetricsLog log(argv[1], begin);
    for (int64_t step = begin; step < end; ++step) {
      log.append({.step = step,
                  .loss = static_cast<double>(step) + std::atof(argv[4]),
                  .target_cr = 4,
                  .peak_memory_bytes = 5 * step});
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
