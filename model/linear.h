// Products with the weights of the frozen network and other tall matrices.  With many rows a GEMM of the library runs at the machine's rate; with the few
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

// weight_nN x_NK, [n, K]: weighted sums of many rows, each read once, in an order that does not depend on threads; the
// library's GEMM runs on one thread there.  The same n and types take it, all else is at::matmul.
at::Tensor few_rows_weighted_sum(const at::Tensor& weight_nN, const at::Tensor& x_NK);

}  // namespace dms
