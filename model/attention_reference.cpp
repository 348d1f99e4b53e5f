#include "model/attention_reference.h"

#include <cmath>
#include <limits>

namespace dms {

at::Tensor dense_causal_visibility(int64_t num_tokens, const DocumentOffsets& documents) {
  at::Tensor document_T = at::empty({num_tokens}, at::kLong);
  for (size_t j = 0; j + 1 < documents.size(); ++j) {
    document_T.slice(0, documents[j], documents[j + 1]).fill_(static_cast<int64_t>(j));
  }
  const at::Tensor position_T = at::arange(num_tokens, at::kLong);
  return at::logical_and(document_T.unsqueeze(1) == document_T.unsqueeze(0),
                         position_T.unsqueeze(0) <= position_T.unsqueeze(1));
}

at::Tensor dense_delayed_eviction_attention(const at::Tensor& q_BHTd, const at::Tensor& k_BGTd,
                                            const at::Tensor& v_BGTd, const at::Tensor& bias_BGT, int64_t window,
                                            const DocumentOffsets& documents) {
  const int64_t num_tokens = q_BHTd.size(2);
  const int64_t repeats = q_BHTd.size(1) / k_BGTd.size(1);
  const at::Tensor q = q_BHTd.to(at::kDouble);
  const at::Tensor k = k_BGTd.to(at::kDouble).repeat_interleave(repeats, 1);
  const at::Tensor v = v_BGTd.to(at::kDouble).repeat_interleave(repeats, 1);
  const at::Tensor bias = bias_BGT.to(at::kDouble).repeat_interleave(repeats, 1).unsqueeze(2);  // [B, H, 1, T]
  const at::Tensor position = at::arange(num_tokens, at::kLong);
  const at::Tensor far = (position.unsqueeze(1) - position.unsqueeze(0)) > window;
  const at::Tensor visible = dense_causal_visibility(num_tokens, documents);
  const at::Tensor score = at::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(q.size(3)));
  const at::Tensor biased = score + at::where(far, bias, at::zeros({}, bias.options()));
  return at::matmul(
      at::softmax(biased.masked_fill(visible.logical_not(), -std::numeric_limits<double>::infinity()), -1), v);
}

}  // namespace dms
