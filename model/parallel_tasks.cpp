// The only file compiled with OpenMP: without it at::parallel_for is a plain loop, whose operators each use all threads.
#include "model/parallel_tasks.h"

#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <atomic>

#ifndef _OPENMP
#error "compile this file with OpenMP"
#endif

namespace dms {

void run_tasks(int64_t count, const std::function<void(int64_t)>& run) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    const c10::AutoGradMode no_grad(false);  // thread-local
    for (int64_t i = next++; i < count; i = next++) run(i);
  });
}

}  // namespace dms
