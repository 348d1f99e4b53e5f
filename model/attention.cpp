#include "model/attention.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <optional>

namespace dms {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

double softmax_scale(int64_t head_dim) { return 1.0 / std::sqrt(static_cast<double>(head_dim)); }

// A piece of the computation that depends on no other: one document of one sample.
struct Piece {
  int64_t sample, begin, end;
  at::Tensor of(const at::Tensor& x) const {  // x [B, heads, T, ...]
    return x.defined() ? x.slice(0, sample, sample + 1).slice(2, begin, end) : x;
  }
  AttentionTensors of(const AttentionTensors& x) const {
    return {of(x.q_BHTd), of(x.k_BGTd), of(x.v_BGTd), of(x.bias_BGT)};
  }
  FlashOutput of(const FlashOutput& x) const { return {of(x.out_BHTd), of(x.lse_BHT)}; }
};

// The survivors of the piece if it takes the sparse path.  `gone_BGT`: bool on the CPU; undefined: never.
std::optional<Survivors> sparse_path(const FlashKernel& kernel, const Piece& piece, const at::Tensor& gone_BGT,
                                     int64_t window, AttentionPath path) {
  if (!gone_BGT.defined() || piece.end - piece.begin <= window + 1) return std::nullopt;
  Survivors survivors(piece.of(gone_BGT).select(0, 0), window, kernel.sparse_block_rows());
  if (path == AttentionPath::automatic && !sparse_is_cheaper(survivors)) return std::nullopt;
  return survivors;
}

// Runs `compute` on every piece and joins what it returns: a fixed number of tensors [1, heads, tokens, ...] each.
template <class Compute>
std::vector<at::Tensor> join_pieces(int64_t num_samples, const DocumentOffsets& documents, const Compute& compute) {
  if (num_samples == 1 && documents.size() == 2) return compute(Piece{0, documents[0], documents[1]});
  std::vector<std::vector<at::Tensor>> samples;  // [tensor][sample]
  for (int64_t sample = 0; sample < num_samples; ++sample) {
    std::vector<std::vector<at::Tensor>> parts;  // [tensor][document]
    for (size_t j = 0; j + 1 < documents.size(); ++j) {
      std::vector<at::Tensor> tensors = compute(Piece{sample, documents[j], documents[j + 1]});
      parts.resize(tensors.size());
      for (size_t i = 0; i < tensors.size(); ++i) parts[i].push_back(std::move(tensors[i]));
    }
    samples.resize(parts.size());
    for (size_t i = 0; i < parts.size(); ++i) samples[i].push_back(at::cat(parts[i], 2));
  }
  std::vector<at::Tensor> joined;
  for (const auto& tensors : samples) joined.push_back(at::cat(tensors, 0));
  return joined;
}

class DelayedEvictionAttention : public torch::autograd::Function<DelayedEvictionAttention> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& bias, int64_t window, const DocumentOffsets& documents,
                            AttentionPath path) {
    const FlashKernel& kernel = flash_kernel(q.device());
    const double scale = softmax_scale(q.size(3));
    const AttentionTensors in{q, k, v, bias};
    // On a GPU this copy is the one place where the host waits: sizes of the sparse path depend on it.
    const at::Tensor gone_BGT = path == AttentionPath::dense ? at::Tensor() : gone_keys(bias).to(at::kCPU);
    const std::vector<at::Tensor> result = join_pieces(q.size(0), documents, [&](const Piece& piece) {
      const auto survivors = sparse_path(kernel, piece, gone_BGT, window, path);
      FlashOutput output =
          survivors ? kernel.sparse(piece.of(in), *survivors, scale) : kernel.dense(piece.of(in), window, scale);
      return std::vector<at::Tensor>{std::move(output.out_BHTd), std::move(output.lse_BHT)};
    });
    ctx->save_for_backward({q, k, v, bias, result[0], result[1], gone_BGT});
    ctx->saved_data["window"] = window;
    ctx->saved_data["documents"] = documents;
    ctx->saved_data["path"] = static_cast<int64_t>(path);
    return result[0];
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    const AttentionTensors in{saved[0], saved[1], saved[2], saved[3]};
    const FlashOutput merged{saved[4], saved[5]};
    const at::Tensor& gone_BGT = saved[6];
    const int64_t window = ctx->saved_data["window"].toInt();
    const DocumentOffsets documents = ctx->saved_data["documents"].toIntVector();
    const auto path = static_cast<AttentionPath>(ctx->saved_data["path"].toInt());
    const FlashKernel& kernel = flash_kernel(saved[0].device());
    const double scale = softmax_scale(saved[0].size(3));
    std::vector<at::Tensor> gradients = join_pieces(saved[0].size(0), documents, [&](const Piece& piece) {
      const at::Tensor dout = piece.of(grad_outputs[0]);
      const auto survivors = sparse_path(kernel, piece, gone_BGT, window, path);
      AttentionGradients part = survivors
                                    ? kernel.sparse_backward(dout, piece.of(in), piece.of(merged), *survivors, scale)
                                    : kernel.dense_backward(dout, piece.of(in), piece.of(merged), window, scale);
      return std::vector<at::Tensor>{std::move(part.dq_BHTd), std::move(part.dk_BGTd), std::move(part.dv_BGTd),
                                     std::move(part.dbias_BGT)};
    });
    gradients.resize(7);  // window, documents and path have none
    return gradients;
  }
};

}  // namespace

at::Tensor delayed_eviction_attention(const at::Tensor& q_BHTd, const at::Tensor& k_BGTd, const at::Tensor& v_BGTd,
                                      const at::Tensor& bias_BGT, int64_t window, const DocumentOffsets& documents,
                                      AttentionPath path) {
  return DelayedEvictionAttention::apply(q_BHTd, k_BGTd, v_BGTd, bias_BGT, window, documents, path);
}

FlashOutput causal_attention(const at::Tensor& q_BHTd, const at::Tensor& k_BGTd, const at::Tensor& v_BGTd,
                             const DocumentOffsets& documents) {
  const at::NoGradGuard no_grad;
  const FlashKernel& kernel = flash_kernel(q_BHTd.device());
  const double scale = softmax_scale(q_BHTd.size(3));
  std::vector<at::Tensor> outs, lses;
  for (size_t j = 0; j + 1 < documents.size(); ++j) {
    const int64_t begin = documents[j], end = documents[j + 1];
    FlashOutput part =
        kernel.causal(q_BHTd.slice(2, begin, end), k_BGTd.slice(2, begin, end), v_BGTd.slice(2, begin, end), scale);
    outs.push_back(std::move(part.out_BHTd));
    lses.push_back(std::move(part.lse_BHT));
  }
  if (outs.size() == 1) return {outs[0], lses[0]};
  return {at::cat(outs, 2), at::cat(lses, 2)};
}

}  // namespace dms
