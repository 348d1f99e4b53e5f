// The process group through which tensors on GPUs travel: c10d's NCCL.  The only file that needs NCCL's headers.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <cstdint>

namespace dms {

// NCCL among all ranks that meet in `store`; communicators are made at the first collective.  Errors and waiting are the
// caller's: NCCL's own watchdog ends no process.  In a build without NCCL (nccl_version() is empty) it throws.
c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>& store, int64_t rank,
                                                    int64_t size, std::chrono::milliseconds timeout);

}  // namespace dms
