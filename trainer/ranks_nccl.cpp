#include "trainer/ranks_nccl.h"

#ifdef DMS_NCCL
#define USE_C10D_NCCL 1
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <cstdlib>
#endif

#include <stdexcept>

#include "trainer/ranks.h"

namespace dms {

#ifdef DMS_NCCL

c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>& store, int64_t rank,
                                                    int64_t size, std::chrono::milliseconds timeout) {
  // By default the watchdog aborts the process at an error, before anyone could say which rank was lost.
  ::setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", /*overwrite=*/0);
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(store, static_cast<int>(rank), static_cast<int>(size),
                                                     std::move(options));
}

std::string nccl_version() {
  const uint64_t version = torch::cuda::nccl::version();
  return std::to_string(version >> 32) + "." + std::to_string(version >> 16 & 0xffff) + "." +
         std::to_string(version & 0xffff);
}

#else

c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>& /*store*/, int64_t /*rank*/,
                                                    int64_t /*size*/, std::chrono::milliseconds /*timeout*/) {
  throw std::logic_error("tensors on GPUs cannot travel: this build is without NCCL");
}

std::string nccl_version() { return ""; }

#endif

}  // namespace dms
