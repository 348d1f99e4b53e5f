// The linear layers of the frozen network.  With many rows a GEMM of the library runs at the machine's rate; with the few
// rows of a decoding step what counts is how fast the weights arrive from memory, and there the library's float32 GEMM on
// the CPU reaches a quarter of the bandwidth.  Few rows therefore take a kernel of our own.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace dms {

// x_nK weight_NK^T + bias_N; the bias may be undefined.
using Linear = at::Tensor (*)(const at::Tensor& x_nK, const at::Tensor& weight_NK, const at::Tensor& bias_N);

// at::linear.
at::Tensor library_linear(const at::Tensor& x_nK, const at::Tensor& weight_NK, const at::Tensor& bias_N);

// For inference: up to so many rows of float32 on the CPU take a kernel of our own, in which a row's result does not
// depend on the other rows; all else is at::linear.  Never recorded for autograd.
constexpr int64_t kFewRows = 32;
at::Tensor few_rows_linear(const at::Tensor& x_nK, const at::Tensor& weight_NK, const at::Tensor& bias_N);

}  // namespace dms
