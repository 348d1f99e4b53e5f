#include "trainer/hardware.h"

#include <ATen/core/grad_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <string>

#include "recipes/user_error.h"

namespace dms {

namespace {

// A "Name:   123 kB" line of a /proc file, in bytes; 0 when absent.
int64_t proc_kilobytes(const char* file, const std::string& name) {
  std::ifstream stream(file);
  std::string line;
  while (std::getline(stream, line)) {
    if (line.starts_with(name + ":")) return std::stoll(line.substr(name.size() + 1)) * 1024;
  }
  return 0;
}

constexpr int64_t kCpuGemmSize = 2048, kGpuGemmSize = 8192;

}  // namespace

bool cpu_computes_bfloat16() {
  std::ifstream stream("/proc/cpuinfo");
  std::string word;
  while (stream >> word) {
    if (word == "avx512_bf16" || word == "amx_bf16" || word == "bf16" /* Arm */) return true;
  }
  return false;
}

at::Device device_named(const std::string& name) {
  const bool has_gpu = at::hasCUDA();
  if (name == "cuda" && !has_gpu) {
    throw UserError("device cuda", "is not there: this build or this machine has no CUDA device",
                    {"'dms doctor' says which of the two it is; 'cpu' or 'auto' work everywhere"});
  }
  return name == "cpu" || !has_gpu ? at::Device(at::kCPU)
                                   : at::Device(at::kCUDA, at::detail::getCUDAHooks().getCurrentDevice());
}

at::ScalarType dtype_named(const std::string& name, at::Device device) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  return !device.is_cpu() || cpu_computes_bfloat16() ? at::kBFloat16 : at::kFloat;
}

int64_t peak_memory_bytes() { return proc_kilobytes("/proc/self/status", "VmHWM"); }
int64_t resident_memory_bytes() { return proc_kilobytes("/proc/self/status", "VmRSS"); }
int64_t peak_device_memory_bytes(at::Device device) {
  if (device.is_cpu()) return peak_memory_bytes();
  constexpr size_t kAllPools = 0;
  return c10::getDeviceAllocator(device.type())->getDeviceStats(device.index()).allocated_bytes[kAllPools].peak;
}
int64_t available_memory_bytes() { return proc_kilobytes("/proc/meminfo", "MemAvailable"); }

void return_freed_memory() { malloc_trim(0); }

void synchronize(at::Device device) {
  if (device.is_cuda()) at::detail::getCUDAHooks().deviceSynchronize(device.has_index() ? device.index() : 0);
}

double measure_gemm_flops_per_s(at::ScalarType dtype, at::Device device) {
  // The full size, or a smaller one where the processor lacks the dtype's instructions, so that even the slow path ends in
  // seconds.
  constexpr int64_t kProbeSize = 256;
  constexpr double kLongestSeconds = 2.0;
  const double probed = measure_gemm_flops_per_s(dtype, device, kProbeSize, kProbeSize, kProbeSize);
  int64_t size = device.is_cpu() ? kCpuGemmSize : kGpuGemmSize;
  while (size > kProbeSize && 2.0 * std::pow(static_cast<double>(size), 3) / probed > kLongestSeconds) size /= 2;
  return std::max(probed, measure_gemm_flops_per_s(dtype, device, size, size, size));
}

int64_t gemm_measurement_bytes(int64_t element_bytes) { return 3 * kCpuGemmSize * kCpuGemmSize * element_bytes; }

double measure_gemm_flops_per_s(at::ScalarType dtype, at::Device device, int64_t rows, int64_t inner, int64_t columns) {
  const at::NoGradGuard no_grad;
  const auto options = at::TensorOptions(device).dtype(dtype);
  const at::Tensor x = at::ones({rows, inner}, options), weight = at::ones({columns, inner}, options);
  double best_seconds = 1e30;
  for (int i = 0; i < 4; ++i) {
    synchronize(device);
    const auto begin = std::chrono::steady_clock::now();
    const at::Tensor product = at::linear(x, weight);
    synchronize(device);
    best_seconds =
        std::min(best_seconds, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return 2.0 * static_cast<double>(rows) * static_cast<double>(inner) * static_cast<double>(columns) / best_seconds;
}

double needed_flops_per_sequence(const Architecture& a, int64_t num_tokens) {
  const double tokens = static_cast<double>(num_tokens);
  const double projections =
      2.0 * static_cast<double>(a.num_heads + a.num_kv_heads) * static_cast<double>(a.head_dim * a.hidden_size);
  const double mlp = 3.0 * static_cast<double>(a.hidden_size * a.intermediate_size);
  const double weights =
      static_cast<double>(a.num_layers) * (projections + mlp) + static_cast<double>(a.vocab_size * a.hidden_size);
  const double linear_forward = 2.0 * weights * tokens;
  // Scores and values: two products of d over T^2/2 (query, key) pairs per head.
  const double attention_forward = static_cast<double>(a.num_layers * a.num_heads * a.head_dim) * 2.0 * tokens * tokens;
  return 3.0 * linear_forward + 4.5 * attention_forward;
}

}  // namespace dms
