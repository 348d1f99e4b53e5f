// What this process runs on: native dtypes, memory, the rate at which it multiplies matrices, and the FLOPs that a
// training step needs by the mathematics.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>

#include "model/architecture.h"

namespace dms {

// True where bfloat16 GEMMs have instructions of their own (AVX-512 BF16 or AMX); without them they are ~300x slower.
bool cpu_computes_bfloat16();

// The device that a --device flag or a recipe names: "cpu", "cuda", or "auto": the GPU where there is one.  Throws
// UserError where the program or the machine has none.
at::Device device_named(const std::string& name);
// The dtype that a --dtype flag names: "float32", "bfloat16", or "auto": bfloat16 on a GPU and on a CPU that has it.
at::ScalarType dtype_named(const std::string& name, at::Device device);

int64_t peak_memory_bytes();                          // VmHWM of this process
int64_t resident_memory_bytes();                      // VmRSS of this process
int64_t peak_device_memory_bytes(at::Device device);  // what LibTorch has had allocated there at most; CPU: the above
int64_t available_memory_bytes();                     // of the machine, respecting nothing but /proc/meminfo

// Gives freed memory that malloc keeps back to the machine: what one phase of a run leaves in pieces would come on top of
// what the next one takes.
void return_freed_memory();

// Waits until the device has done what it was given.
void synchronize(at::Device device);

// Best rate of a 2048^3 GEMM (8192^3 on a GPU) in this process, dtype and thread count, FLOP/s.  Takes about a second.
double measure_gemm_flops_per_s(at::ScalarType dtype, at::Device device = at::kCPU);
// What it allocates for that on a CPU: its three largest matrices.
int64_t gemm_measurement_bytes(int64_t element_bytes);
// The same for a linear layer's [rows, inner] x [inner, columns].
double measure_gemm_flops_per_s(at::ScalarType dtype, at::Device device, int64_t rows, int64_t inner, int64_t columns);

// FLOPs of one training sequence of T tokens: teacher forward, student forward and the activation-gradient backward
// (as many FLOPs as a forward for the linears, 2.5 times a forward for attention); dense causal attention, all
// positions projected onto the vocabulary, no recomputation.
double needed_flops_per_sequence(const Architecture& architecture, int64_t num_tokens);

}  // namespace dms
