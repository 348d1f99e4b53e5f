// FlashKernel on LibTorch's FlashAttention-2 for NVIDIA GPUs (compute capability 8.0 and up, bfloat16 or float16, head
// dimension at most 256).  Only ATen calls, so it compiles with any LibTorch; the CUDA half of the library is needed to
// run it.  The host never waits here: offsets go to the device through pinned memory.
//
// State: compiled and linked, its algebra (model/packed_flash_kernel.cpp) tested on the CPU, never run on a GPU.
// tools/gpu_check.sh runs it there.
//
// Traps, from the op's source: the head dimension must be a multiple of 8; tensors are [B, T, heads, d], packed ones
// [N, heads, d] with lse [heads, N]; a group without keys gets lse = +inf, so no caller passes one.
#include <ATen/ATen.h>

#include <algorithm>
#include <stdexcept>

#include "model/packed_flash_kernel.h"
#include "model/paged_attention.h"
#include "model/pinned.h"

namespace dms {

namespace {

at::Tensor padded(const at::Tensor& x) {
  const int64_t missing = (8 - x.size(-1) % 8) % 8;
  return missing == 0 ? x : at::constant_pad_nd(x, {0, missing}, 0.0);
}

// [B, heads, T, d] <-> the op's [B, T, heads, d]
at::Tensor to_op(const at::Tensor& x_BHTd) { return padded(x_BHTd).transpose(1, 2); }
at::Tensor from_op(const at::Tensor& x_BTHd, int64_t head_dim) { return x_BTHd.slice(3, 0, head_dim).transpose(1, 2); }

// Offsets 0, ends[0], ends[1], ... as the op reads them, and the longest group.
struct Groups {
  Groups(const std::vector<int64_t>& ends, at::Device device) {
    std::vector<int32_t> offsets{0};
    for (const int64_t end : ends) {
      longest = std::max<int64_t>(longest, end - offsets.back());
      offsets.push_back(static_cast<int32_t>(end));
    }
    on_device = to_device(offsets, device);
  }
  at::Tensor on_device;
  int64_t longest = 0;
};

// The state of the op's dropout generator: there is none, but the argument must be a tensor.
at::Tensor no_random_state(const at::Tensor& x) { return at::empty({2}, x.options().dtype(at::kUInt64)); }

class CudaFlashKernel final : public PackedFlashKernel {
 public:
  FlashOutput causal(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) const override {
    return forward(q, k, v, std::nullopt, scale);
  }

  FlashGradients causal_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const FlashOutput& merged, double scale) const override {
    return backward(dout, q, k, v, merged, std::nullopt, scale);
  }

  FlashOutput banded(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window,
                     double scale) const override {
    return forward(q, k, v, window, scale);
  }

  FlashGradients banded_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const FlashOutput& merged, int64_t window, double scale) const override {
    return backward(dout, q, k, v, merged, window, scale);
  }

  // Longer than on the CPU: every block's survivors are copied, so that their copies take 1/1024 of [T, T].
  int64_t sparse_block_rows() const override { return 1024; }

 protected:
  RowOutput rectangles(const Rectangles& r, double scale) const override {
    check_dtype(r.q_Nd);
    const Groups rows(r.row_ends, r.q_Nd.device()), keys(r.key_ends, r.q_Nd.device());
    const auto [out, lse, seed, offset, debug] = at::_flash_attention_forward(
        padded(r.q_Nd).unsqueeze(1), padded(r.k_Md).unsqueeze(1), padded(r.v_Md).unsqueeze(1), rows.on_device,
        keys.on_device, rows.longest, keys.longest, 0.0, /*is_causal=*/false, /*return_debug_mask=*/false, scale);
    return {out.squeeze(1).slice(1, 0, r.q_Nd.size(1)), lse.squeeze(0)};
  }

  PackedGradients rectangles_backward(const at::Tensor& dout_Nd, const Rectangles& r, const RowOutput& merged,
                                      double scale) const override {
    const Groups rows(r.row_ends, r.q_Nd.device()), keys(r.key_ends, r.q_Nd.device());
    const auto [dq, dk, dv] = at::_flash_attention_backward(
        padded(dout_Nd).unsqueeze(1), padded(r.q_Nd).unsqueeze(1), padded(r.k_Md).unsqueeze(1),
        padded(r.v_Md).unsqueeze(1), padded(merged.out_Nd).unsqueeze(1), merged.lse_N.contiguous().unsqueeze(0),
        rows.on_device, keys.on_device, rows.longest, keys.longest, 0.0, /*is_causal=*/false, no_random_state(r.q_Nd),
        no_random_state(r.q_Nd), scale);
    const auto unpadded = [&](const at::Tensor& x) { return x.squeeze(1).slice(1, 0, r.q_Nd.size(1)); };
    return {unpadded(dq), unpadded(dk), unpadded(dv)};
  }

 private:
  static void check_dtype(const at::Tensor& x) {
    if (x.scalar_type() != at::kBFloat16 && x.scalar_type() != at::kHalf) {
      throw std::runtime_error(std::string("attention on a GPU computes in bfloat16 or float16, not ") +
                               at::toString(x.scalar_type()) + ": set trainer.dtype to bfloat16");
    }
  }

  static FlashOutput forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             std::optional<int64_t> window, double scale) {
    check_dtype(q);
    const auto [out, lse, seed, offset, debug] = at::_flash_attention_forward(
        to_op(q), to_op(k), to_op(v), std::nullopt, std::nullopt, q.size(2), k.size(2), 0.0, /*is_causal=*/true,
        /*return_debug_mask=*/false, scale, window, window ? std::optional<int64_t>(0) : std::nullopt);
    return {from_op(out, q.size(3)), lse};
  }

  static FlashGradients backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const FlashOutput& merged, std::optional<int64_t> window, double scale) {
    const auto [dq, dk, dv] = at::_flash_attention_backward(
        to_op(dout), to_op(q), to_op(k), to_op(v), to_op(merged.out_BHTd), merged.lse_BHT.contiguous(), at::Tensor(),
        at::Tensor(), q.size(2), k.size(2), 0.0, /*is_causal=*/true, no_random_state(q), no_random_state(q), scale,
        window, window ? std::optional<int64_t>(0) : std::nullopt);
    return {from_op(dq, q.size(3)), from_op(dk, q.size(3)), from_op(dv, q.size(3))};
  }
};

// Every span is a sequence of its own, the query heads of its group the rows of its query.  `seqused_k` lets spans lie
// anywhere: only where each begins is read from the offsets.
class CudaPageKernel final : public PageKernel {
 public:
  PageOutput attend(const at::Tensor& q_SRd, const PageSpans& spans, double scale) const override {
    const int64_t num_spans = q_SRd.size(0), rows = q_SRd.size(1);
    const at::Device device = q_SRd.device();
    std::vector<int32_t> offsets = spans.first_rows;
    offsets.push_back(static_cast<int32_t>(spans.keys_Md.size(0)));
    const int64_t longest = *std::max_element(spans.num_rows.begin(), spans.num_rows.end());
    const at::Tensor query_offsets =
        at::arange(0, num_spans * rows + 1, rows, at::TensorOptions().dtype(at::kInt).device(device));
    const auto [out, lse, seed, offset, debug] = at::_flash_attention_forward(
        q_SRd.reshape({num_spans * rows, 1, -1}), spans.keys_Md.unsqueeze(1), spans.values_Md.unsqueeze(1),
        query_offsets, to_device(offsets, device), rows, longest, 0.0, /*is_causal=*/false,
        /*return_debug_mask=*/false, scale, std::nullopt, std::nullopt, to_device(spans.num_rows, device));
    return {out.view(q_SRd.sizes()), lse.view({num_spans, rows})};
  }
};

}  // namespace

const PageKernel* cuda_page_kernel(const at::Tensor& q_NRd) {
  static const CudaPageKernel kernel;
  const bool half = q_NRd.scalar_type() == at::kBFloat16 || q_NRd.scalar_type() == at::kHalf;
  return half && q_NRd.size(-1) % 8 == 0 && q_NRd.size(-1) <= 256 ? &kernel : nullptr;
}

const FlashKernel& cuda_flash_kernel() {
  static const CudaFlashKernel kernel;
  return kernel;
}

}  // namespace dms
