#include "tools/tensor_memory.h"

#include <c10/core/CPUAllocator.h>
#include <malloc.h>
#include <sys/mman.h>

#include <climits>
#include <cstdint>
#include <cstdlib>

namespace dms {

namespace {

constexpr size_t kAlignment = 64;  // what LibTorch's kernels expect

// malloc maps blocks from here on one by one, the largest limit that it accepts, and they fault in anew each time.
constexpr int kMappedBytes = 32 << 20;
constexpr uintptr_t kHugePage = uintptr_t{2} << 20;

// The word before a tensor's data says where its block begins.  malloc's own alignment, 16, leaves room for it.
void*& block_of(void* data) { return static_cast<void**>(data)[-1]; }

// In huge pages that is a five-hundredth of the faults.  Advice: where there are none, nothing changes.
void ask_for_huge_pages(void* block, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(block), first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (begin + bytes) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
}

void free_data(void* data) {
  if (data != nullptr) std::free(block_of(data));
}

// Data and context are one pointer, without which LibTorch's raw_allocate() refuses an allocator.
class ReusableMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = nullptr;
    if (bytes > 0) {
      TORCH_CHECK(bytes < SIZE_MAX - kAlignment, "a tensor of ", bytes, " bytes");
      void* block = std::malloc(bytes + kAlignment);
      TORCH_CHECK_WITH(OutOfMemoryError, block != nullptr, "out of memory: no room for a tensor of ", bytes, " bytes");
      if (bytes >= kMappedBytes) ask_for_huge_pages(block, bytes);
      const auto address = reinterpret_cast<uintptr_t>(block);
      data = reinterpret_cast<void*>((address / kAlignment + 1) * kAlignment);
      block_of(data) = block;
    }
    return {data, data, &free_data, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_data; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

}  // namespace

void use_reusable_tensor_memory() {
  mallopt(M_MMAP_THRESHOLD, kMappedBytes);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
  static ReusableMemory memory;
  constexpr uint8_t kBeforeTheDefault = 1;
  c10::SetCPUAllocator(&memory, kBeforeTheDefault);
}

}  // namespace dms
