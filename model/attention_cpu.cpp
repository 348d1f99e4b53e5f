// FlashKernel on the CPU: attention in tiles (model/attention_cpu_tiles.h), computed in float32 whatever the dtype (in
// bfloat16 a training step of SmolLM2 at 1024 tokens so does 255 tokens/s, where the library's bfloat16 kernel made it
// 201).  The parts of the two-part path, LibTorch's own flash attention, are here for comparison: the CPU op has no window,
// so the near band runs in query blocks, each over the keys that its band can reach, under a small additive mask.
// Trap: zero keys kill the process (SIGFPE in the op); no caller passes an empty key range.
#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "model/attention_cpu_tiles.h"
#include "model/flash_kernel.h"

namespace dms {

namespace {

// Longer blocks waste masked scores, shorter ones GEMM efficiency; measured best between 128 and 512 for d = 64.
constexpr int64_t kBandBlock = 256;

struct Band {
  int64_t begin, end, first_key;  // queries [begin, end) see keys [first_key, end)
  int64_t num_queries() const { return end - begin; }
};

template <class Visit>
void for_each_band(int64_t num_tokens, int64_t window, const Visit& visit) {
  for (int64_t begin = 0; begin < num_tokens; begin += kBandBlock) {
    visit(Band{begin, std::min(num_tokens, begin + kBandBlock), std::max<int64_t>(0, begin - window)});
  }
}

at::Tensor band_mask(const Band& band, int64_t window, const at::TensorOptions& options) {
  const auto long_options = options.dtype(at::kLong);
  const at::Tensor q = at::arange(band.begin, band.end, long_options).unsqueeze(1);
  const at::Tensor k = at::arange(band.first_key, band.end, long_options).unsqueeze(0);
  const at::Tensor hidden = at::logical_or(k > q, (q - k) > window);
  return at::zeros({band.num_queries(), band.end - band.first_key}, options)
      .masked_fill_(hidden, -std::numeric_limits<double>::infinity());
}

class CpuFlashKernel final : public FlashKernel {
 public:
  FlashOutput causal(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) const override {
    if (q.size(0) == 1) return cpu_tiled_attention({q, k, v, {}}, q.size(2), nullptr, scale);
    auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, true, {}, scale);
    return {out, lse};
  }

  FlashGradients causal_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const FlashOutput& merged, double scale) const override {
    auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(dout, q, k, v, merged.out_BHTd,
                                                                                 merged.lse_BHT, 0.0, true, {}, scale);
    return {dq, dk, dv};
  }

  FlashOutput banded(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window,
                     double scale) const override {
    const int64_t num_tokens = q.size(2);
    if (window + 1 >= num_tokens) return causal(q, k, v, scale);
    FlashOutput result;
    std::vector<at::Tensor> outs, lses;
    for_each_band(num_tokens, window, [&](const Band& band) {
      auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(
          q.slice(2, band.begin, band.end), k.slice(2, band.first_key, band.end), v.slice(2, band.first_key, band.end),
          0.0, false, band_mask(band, window, q.options()), scale);
      outs.push_back(out);
      lses.push_back(lse);
    });
    return {at::cat(outs, 2), at::cat(lses, 2)};
  }

  FlashGradients banded_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const FlashOutput& merged, int64_t window, double scale) const override {
    const int64_t num_tokens = q.size(2);
    if (window + 1 >= num_tokens) return causal_backward(dout, q, k, v, merged, scale);
    FlashGradients total{at::empty_like(q), at::zeros_like(k), at::zeros_like(v)};
    for_each_band(num_tokens, window, [&](const Band& band) {
      auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
          dout.slice(2, band.begin, band.end), q.slice(2, band.begin, band.end), k.slice(2, band.first_key, band.end),
          v.slice(2, band.first_key, band.end), merged.out_BHTd.slice(2, band.begin, band.end),
          merged.lse_BHT.slice(2, band.begin, band.end), 0.0, false, band_mask(band, window, q.options()), scale);
      total.dq_BHTd.slice(2, band.begin, band.end).copy_(dq);
      total.dk_BGTd.slice(2, band.first_key, band.end).add_(dk);
      total.dv_BGTd.slice(2, band.first_key, band.end).add_(dv);
    });
    return total;
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
