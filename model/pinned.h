// Small arrays of the host on their way to a device.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace dms {

// [n], int32 or int64, on `device`.  The host does not wait for the copy: it goes through pinned memory.
template <class Integer>
at::Tensor to_device(const std::vector<Integer>& values, at::Device device) {
  const at::Tensor host = at::tensor(values, at::TensorOptions().dtype(c10::CppTypeToScalarType<Integer>::value));
  return device.is_cpu() ? host : host.pin_memory().to(device, /*non_blocking=*/true);
}

}  // namespace dms
