// The seam between delayed-eviction attention and the device that computes it: one implementation a device
// (attention_cpu.cpp, attention_cuda.cpp).
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "model/survivors.h"

namespace dms {

// Attention output with the log-sum-exp of each row's scores, the state from which partial results are merged.
struct FlashOutput {
  at::Tensor out_BHTd;
  at::Tensor lse_BHT;  // float32 (float64 for float64 inputs)
};

// What delayed-eviction attention is computed from.  Query heads may outnumber KV heads (H = G * R; head h reads KV
// head h / R); bias_BGT is float32 (float64 beside float64 inputs).
struct AttentionTensors {
  at::Tensor q_BHTd, k_BGTd, v_BGTd, bias_BGT;
};

struct AttentionGradients {
  at::Tensor dq_BHTd, dk_BGTd, dv_BGTd, dbias_BGT;
};

// Every row must see at least one key.  Backward takes the forward pass's output.
class FlashKernel {
 public:
  virtual ~FlashKernel() = default;

  // Causal attention on a square: query t sees keys 0..t.
  virtual FlashOutput causal(const at::Tensor& q_BHTd, const at::Tensor& k_BGTd, const at::Tensor& v_BGTd,
                             double scale) const = 0;

  // Delayed-eviction attention of one sequence (B = 1) that visits every key.
  virtual FlashOutput dense(const AttentionTensors& in, int64_t window, double scale) const = 0;
  virtual AttentionGradients dense_backward(const at::Tensor& dout_BHTd, const AttentionTensors& in,
                                            const FlashOutput& output, int64_t window, double scale) const = 0;

  // Delayed-eviction attention of one sequence (B = 1) that visits, beyond the window, only `survivors`.
  virtual FlashOutput sparse(const AttentionTensors& in, const Survivors& survivors, double scale) const = 0;
  virtual AttentionGradients sparse_backward(const at::Tensor& dout_BHTd, const AttentionTensors& in,
                                             const FlashOutput& output, const Survivors& survivors,
                                             double scale) const = 0;
  // Rows of a block of `survivors` that suit this device.
  virtual int64_t sparse_block_rows() const = 0;
};

// The kernel for tensors on `device`.  Throws std::runtime_error for a device without one.
const FlashKernel& flash_kernel(at::Device device);

}  // namespace dms
