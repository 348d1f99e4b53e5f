// Independent pieces of work on LibTorch's own threads.
#pragma once

#include <cstdint>
#include <functional>

namespace dms {

// Calls run(0), ..., run(count - 1), each wholly on one thread: threads take the next number as they become free, and
// operators inside a call do not split their work further.  What a call computes thus does not depend on the number
// of threads.  Autograd records nothing inside.  The first exception is rethrown.
void run_tasks(int64_t count, const std::function<void(int64_t)>& run);

}  // namespace dms
