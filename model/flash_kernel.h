// The seam between delayed-eviction attention and a device's library flash-attention kernels.  One implementation a
// device (attention_cpu.cpp, ...); the algebra above it is written once.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace dms {

// Attention output with the log-sum-exp of each row's scores, the state from which partial results are merged.
struct FlashOutput {
  at::Tensor out_BHTd;
  at::Tensor lse_BHT;  // float32 (float64 for float64 inputs)
};

struct FlashGradients {
  at::Tensor dq_BHTd;
  at::Tensor dk_BGTd;
  at::Tensor dv_BGTd;
};

// Query heads may outnumber KV heads (H = G * R; head h reads KV head h / R).  Every row must see at least one key.
// Backward takes the *merged* output and log-sum-exp of all parts, which makes the gradient of each part exact:
// P = exp(S - lse_merged) and dS = P * (dP - rowsum(dOut * Out_merged)).
class FlashKernel {
 public:
  virtual ~FlashKernel() = default;

  // Causal attention on a square: query t sees keys 0..t.
  virtual FlashOutput causal(const at::Tensor& q_BHTd, const at::Tensor& k_BGTd, const at::Tensor& v_BGTd,
                             double scale) const = 0;
  virtual FlashGradients causal_backward(const at::Tensor& dout_BHTd, const at::Tensor& q_BHTd,
                                         const at::Tensor& k_BGTd, const at::Tensor& v_BGTd, const FlashOutput& merged,
                                         double scale) const = 0;

  // Causal attention within a band: query q sees keys k with 0 <= q - k <= window.
  virtual FlashOutput banded(const at::Tensor& q_BHTd, const at::Tensor& k_BGTd, const at::Tensor& v_BGTd,
                             int64_t window, double scale) const = 0;
  virtual FlashGradients banded_backward(const at::Tensor& dout_BHTd, const at::Tensor& q_BHTd,
                                         const at::Tensor& k_BGTd, const at::Tensor& v_BGTd, const FlashOutput& merged,
                                         int64_t window, double scale) const = 0;
};

// The kernel for tensors on `device`.  Throws std::runtime_error for a device without one.
const FlashKernel& flash_kernel(at::Device device);

}  // namespace dms
