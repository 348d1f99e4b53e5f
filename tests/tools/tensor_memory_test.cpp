#include "tools/tensor_memory.h"

#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>

namespace dms {
namespace {

class TensorMemoryTest : public ::testing::Test {
 protected:
  TensorMemoryTest() { use_reusable_tensor_memory(); }
};

TEST_F(TensorMemoryTest, IsAlignedForEverySize) {
  for (int64_t bytes = 1; bytes < 300; ++bytes) {
    const at::Tensor x = at::ones({bytes}, at::kByte);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(x.data_ptr()) % 64, 0U) << bytes;
    EXPECT_EQ(at::sum(x).item<int64_t>(), bytes);
  }
  EXPECT_EQ(at::empty({0}).numel(), 0);
}

// Some of LibTorch's kernels take their scratch memory so.
TEST_F(TensorMemoryTest, CanBeTakenRaw) {
  c10::Allocator* allocator = c10::GetCPUAllocator();
  void* data = nullptr;
  ASSERT_NO_THROW(data = allocator->raw_allocate(1000));
  ASSERT_NE(data, nullptr);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0U);
  std::memset(data, 7, 1000);
  allocator->raw_deallocate(data);
  EXPECT_NO_THROW(allocator->raw_deallocate(allocator->raw_allocate(0)));
}

TEST_F(TensorMemoryTest, RefusesWhatCannotBe) {
  EXPECT_THROW(c10::GetCPUAllocator()->allocate(SIZE_MAX - 8), c10::Error);
#ifndef __SANITIZE_ADDRESS__  // whose malloc ends the process instead
  EXPECT_THROW(c10::GetCPUAllocator()->allocate(size_t{1} << 62), c10::OutOfMemoryError);
#endif
}

}  // namespace
}  // namespace dms
