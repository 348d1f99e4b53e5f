// FlashKernel on the CPU: attention in tiles (model/attention_cpu_tiles.h), computed in float32 whatever the dtype (in
// bfloat16 a training step of SmolLM2 at 1024 tokens so does 255 tokens/s, where the library's bfloat16 kernel made it
// 201).  Causal attention of a batch of sequences goes through LibTorch's own kernel.
// Trap: zero keys kill the process (SIGFPE in the op); no caller passes an empty key range.
#include <ATen/ATen.h>

#include "model/attention_cpu_tiles.h"
#include "model/flash_kernel.h"

namespace dms {

namespace {

class CpuFlashKernel final : public FlashKernel {
 public:
  FlashOutput causal(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) const override {
    if (q.size(0) == 1) return cpu_tiled_attention({q, k, v, {}}, q.size(2), nullptr, scale);
    auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, true, {}, scale);
    return {out, lse};
  }

  FlashOutput sparse(const AttentionTensors& in, const Survivors& survivors, double scale) const override {
    return cpu_tiled_attention(in, survivors.window(), &survivors, scale);
  }

  AttentionGradients sparse_backward(const at::Tensor& dout, const AttentionTensors& in, const FlashOutput& merged,
                                     const Survivors& survivors, double scale) const override {
    return cpu_tiled_attention_backward(dout, in, merged, survivors.window(), &survivors, scale);
  }

  FlashOutput dense(const AttentionTensors& in, int64_t window, double scale) const override {
    return cpu_tiled_attention(in, window, nullptr, scale);
  }

  AttentionGradients dense_backward(const at::Tensor& dout, const AttentionTensors& in, const FlashOutput& merged,
                                    int64_t window, double scale) const override {
    return cpu_tiled_attention_backward(dout, in, merged, window, nullptr, scale);
  }

  int64_t sparse_block_rows() const override { return kCpuBlockRows; }
};

}  // namespace

const FlashKernel& cpu_flash_kernel() {
  static const CpuFlashKernel kernel;
  return kernel;
}

}  // namespace dms
