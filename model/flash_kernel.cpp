#include "model/flash_kernel.h"

#include <stdexcept>

namespace dms {

const FlashKernel& cpu_flash_kernel();   // attention_cpu.cpp
const FlashKernel& cuda_flash_kernel();  // attention_cuda.cpp

const FlashKernel& flash_kernel(at::Device device) {
  if (device.is_cpu()) return cpu_flash_kernel();
  if (device.is_cuda()) return cuda_flash_kernel();
  throw std::runtime_error("no flash-attention back end for device " + device.str());
}

}  // namespace dms
