#include "trainer/importance.h"

#include <ATen/core/grad_mode.h>
#include <cmath>

namespace dms {

namespace {

constexpr int64_t kQueryBlock = 128;
// A key that takes nearly all of a query's attention would otherwise have unbounded importance.
constexpr double kSmallestRest = 0.05;

// Everything one document needs, head-major float32.
struct HeadTensors {
  at::Tensor q_HTd, k_HTd, out_HTd;
  at::Tensor lse_HT;
  at::Tensor value_metric_HTd;   // v_k M, M = W_o^T W_o of the head
  at::Tensor value_norm2_HT;     // ||v_k W_o||^2
  at::Tensor output_norm2_HT;    // ||o_q W_o||^2
  at::Tensor inverse_x_norm2_T;  // 1 / ||x_q||^2
};

HeadTensors prepare(const Architecture& a, const LayerWeights& w, const AttentionInputs& in, const at::Tensor& out_BHTd,
                    const at::Tensor& lse_BHT, const at::Tensor& x_TD) {
  const auto f32 = [](const at::Tensor& x) { return x.squeeze(0).to(at::kFloat); };
  HeadTensors t;
  t.q_HTd = f32(in.q_BHTd).contiguous();
  t.k_HTd = f32(in.k_BGTd).repeat_interleave(a.group_size(), 0);
  t.out_HTd = f32(out_BHTd).contiguous();
  t.lse_HT = f32(lse_BHT).contiguous();
  const at::Tensor v_HTd = f32(in.v_BGTd).repeat_interleave(a.group_size(), 0);
  const at::Tensor o_HDd = w.o_proj.to(at::kFloat).view({a.hidden_size, a.num_heads, a.head_dim}).transpose(0, 1);
  const at::Tensor metric_Hdd = at::matmul(o_HDd.transpose(1, 2), o_HDd);
  t.value_metric_HTd = at::matmul(v_HTd, metric_Hdd);
  t.value_norm2_HT = at::sum(t.value_metric_HTd * v_HTd, -1);
  t.output_norm2_HT = at::sum(at::matmul(t.out_HTd, metric_Hdd) * t.out_HTd, -1);
  t.inverse_x_norm2_T = at::reciprocal(at::sum(at::square(x_TD.to(at::kFloat)), -1).clamp_min(1e-20));
  return t;
}

// Sums e^2 over the far queries of one document into importance_HT[:, begin:end).
void add_document(const HeadTensors& t, int64_t window, double scale, int64_t begin, int64_t end,
                  const at::Tensor& importance_HT) {
  for (int64_t first = begin + window + 1; first < end; first += kQueryBlock) {
    const int64_t last = std::min(end, first + kQueryBlock);
    const int64_t num_keys = last - 1 - window - begin;  // keys far from the block's last query
    const auto queries = [&](const at::Tensor& x) { return x.slice(1, first, last); };
    const auto keys = [&](const at::Tensor& x) { return x.slice(1, begin, begin + num_keys); };

    at::Tensor p_HQK = at::matmul(queries(t.q_HTd) * scale, keys(t.k_HTd).transpose(1, 2));
    p_HQK.sub_(queries(t.lse_HT).unsqueeze(2)).exp_();
    // Only the block's corner holds keys that are still near for its earlier queries.
    if (last - first > 1) {
      const int64_t corner = std::min(num_keys, last - first - 1);
      const auto long_options = p_HQK.options().dtype(at::kLong);
      const at::Tensor q = at::arange(first, last, long_options).unsqueeze(1);
      const at::Tensor k = at::arange(begin + num_keys - corner, begin + num_keys, long_options).unsqueeze(0);
      p_HQK.slice(2, num_keys - corner).masked_fill_((q - k) <= window, 0.0);
    }
    // ||(v_k - o_q) W||^2 by expansion; rounding can push it below 0.
    at::Tensor e2_HQK = at::matmul(queries(t.out_HTd), keys(t.value_metric_HTd).transpose(1, 2)).mul_(-2.0);
    e2_HQK.add_(keys(t.value_norm2_HT).unsqueeze(1)).add_(queries(t.output_norm2_HT).unsqueeze(2)).clamp_min_(0.0);
    e2_HQK.mul_(t.inverse_x_norm2_T.slice(0, first, last).unsqueeze(0).unsqueeze(2));
    p_HQK.div_((1.0 - p_HQK).clamp_min_(kSmallestRest)).square_().mul_(e2_HQK);
    keys(importance_HT).add_(at::sum(p_HQK, 1));
  }
  const int64_t num_far = std::max<int64_t>(0, end - begin - window - 1);
  const at::Tensor far_queries =
      at::arange(num_far, 0, -1, importance_HT.options());  // key begin + i has num_far - i of them
  importance_HT.slice(1, begin, begin + num_far).div_(far_queries);
}

}  // namespace

at::Tensor key_importance_GT(const Architecture& a, const LayerWeights& weights, const AttentionInputs& inputs,
                             const at::Tensor& out_BHTd, const at::Tensor& lse_BHT, const at::Tensor& x_TD,
                             int64_t window, const DocumentOffsets& documents) {
  const at::NoGradGuard no_grad;
  const HeadTensors t = prepare(a, weights, inputs, out_BHTd, lse_BHT, x_TD);
  const double scale = 1.0 / std::sqrt(static_cast<double>(a.head_dim));
  const at::Tensor importance_HT = at::zeros({a.num_heads, x_TD.size(0)}, t.q_HTd.options());
  for (size_t j = 0; j + 1 < documents.size(); ++j) {
    add_document(t, window, scale, documents[j], documents[j + 1], importance_HT);
  }
  return at::sum(importance_HT.view({a.num_kv_heads, a.group_size(), -1}), 1);
}

}  // namespace dms
