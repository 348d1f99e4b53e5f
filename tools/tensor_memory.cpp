#include "tools/tensor_memory.h"

#include <c10/core/CPUAllocator.h>
#include <malloc.h>

#include <climits>
#include <cstdint>
#include <cstdlib>

namespace dms {

namespace {

constexpr size_t kAlignment = 64;  // what LibTorch's kernels expect

class ReusableMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* block = nullptr;
    void* data = nullptr;
    if (bytes > 0) {
      TORCH_CHECK(bytes < SIZE_MAX - kAlignment, "a tensor of ", bytes, " bytes");
      block = std::malloc(bytes + kAlignment);
      TORCH_CHECK_WITH(OutOfMemoryError, block != nullptr, "out of memory: no room for a tensor of ", bytes, " bytes");
      const auto address = reinterpret_cast<uintptr_t>(block);
      data = reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
    }
    return {data, block, &std::free, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

}  // namespace

void use_reusable_tensor_memory() {
  constexpr int largest_accepted = 32 << 20;
  mallopt(M_MMAP_THRESHOLD, largest_accepted);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
  static ReusableMemory memory;
  constexpr uint8_t kBeforeTheDefault = 1;
  c10::SetCPUAllocator(&memory, kBeforeTheDefault);
}

}  // namespace dms
