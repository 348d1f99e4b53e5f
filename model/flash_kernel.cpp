#include "model/flash_kernel.h"

#include <stdexcept>

#include "model/far_square.h"

namespace dms {

const FlashKernel& cpu_flash_kernel();   // attention_cpu.cpp
const FlashKernel& cuda_flash_kernel();  // attention_cuda.cpp

const FlashKernel& flash_kernel(at::Device device) {
  if (device.is_cpu()) return cpu_flash_kernel();
  if (device.is_cuda()) return cuda_flash_kernel();
  throw std::runtime_error("no flash-attention back end for device " + device.str());
}

FlashOutput FlashKernel::dense(const AttentionTensors& in, int64_t window, double scale) const {
  FlashOutput result = banded(in.q_BHTd, in.k_BGTd, in.v_BGTd, window, scale);
  if (in.q_BHTd.size(2) > window + 1) {
    const FarSquare far = make_far_square(in, window, scale);
    const FlashOutput part = causal(far.q, far.k, far.v, scale);
    merge(result.out_BHTd.slice(2, window + 1), result.lse_BHT.slice(2, window + 1),
          part.out_BHTd.slice(3, 0, in.q_BHTd.size(3)), part.lse_BHT);
  }
  return result;
}

AttentionGradients FlashKernel::dense_backward(const at::Tensor& dout, const AttentionTensors& in,
                                               const FlashOutput& merged, int64_t window, double scale) const {
  const int64_t num_tokens = in.q_BHTd.size(2), head_dim = in.q_BHTd.size(3);
  FlashGradients near = banded_backward(dout, in.q_BHTd, in.k_BGTd, in.v_BGTd, merged, window, scale);
  AttentionGradients total{near.dq_BHTd, near.dk_BGTd, near.dv_BGTd, at::zeros_like(in.bias_BGT)};
  if (num_tokens > window + 1) {
    const int64_t first = window + 1, size = num_tokens - first;
    const int64_t columns = num_bias_columns(in.q_BHTd.scalar_type());
    const FarSquare square = make_far_square(in, window, scale);
    const FlashOutput rows{append_zero_columns(merged.out_BHTd.slice(2, first), columns),
                           merged.lse_BHT.slice(2, first)};
    const FlashGradients far =
        causal_backward(append_zero_columns(dout.slice(2, first), columns), square.q, square.k, square.v, rows, scale);
    total.dq_BHTd.slice(2, first).add_(far.dq_BHTd.slice(3, 0, head_dim));
    total.dk_BGTd.slice(2, 0, size).add_(far.dk_BGTd.slice(3, 0, head_dim));
    total.dv_BGTd.slice(2, 0, size).add_(far.dv_BGTd.slice(3, 0, head_dim));
    total.dbias_BGT.slice(2, 0, size).copy_(bias_gradient(far.dk_BGTd, head_dim, scale, in.bias_BGT.scalar_type()));
  }
  return total;
}

}  // namespace dms
