#include "model/attention.h"

#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

namespace dms {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// One document's inputs, and its far part as an augmented causal square.
struct FarSquare {
  at::Tensor q, k, v;  // extra columns appended
};

double softmax_scale(int64_t head_dim) { return 1.0 / std::sqrt(static_cast<double>(head_dim)); }

// A power of two near 1/scale: exact in every dtype, and keeps bias/(c * scale) near the bias itself.
double query_column(double scale) { return std::exp2(std::floor(std::log2(1.0 / scale))); }

// In low precision a bias is carried by two columns, high and low parts, so that it keeps 16 significant bits.
int64_t num_bias_columns(at::ScalarType dtype) { return dtype == at::kFloat || dtype == at::kDouble ? 1 : 2; }

at::Tensor append_columns(const at::Tensor& x, int64_t columns, double value) {
  return at::constant_pad_nd(x, {0, columns}, value);
}

FarSquare make_far_square(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                          int64_t window, double scale) {
  const int64_t size = q.size(2) - window - 1;
  const int64_t columns = num_bias_columns(q.scalar_type());
  const double column = query_column(scale);
  const at::Tensor key_column = (bias.slice(2, 0, size) / (column * scale)).unsqueeze(3);
  std::vector<at::Tensor> key_parts{k.slice(2, 0, size)};
  const at::Tensor high = key_column.to(k.scalar_type());
  key_parts.push_back(high);
  if (columns == 2) key_parts.push_back((key_column - high.to(key_column.scalar_type())).to(k.scalar_type()));
  return {append_columns(q.slice(2, window + 1), columns, column), at::cat(key_parts, 3),
          append_columns(v.slice(2, 0, size), columns, 0.0)};
}

// Merges `part` into rows [first, ...) of `total`, in place.
void merge_rows(FlashOutput& total, const FlashOutput& part, int64_t first) {
  at::Tensor out_rows = total.out_BHTd.slice(2, first);
  at::Tensor lse_rows = total.lse_BHT.slice(2, first);
  const at::Tensor lse = at::logaddexp(lse_rows, part.lse_BHT);
  const at::Tensor weight_total = at::exp(lse_rows - lse).unsqueeze(3);
  const at::Tensor weight_part = at::exp(part.lse_BHT - lse).unsqueeze(3);
  out_rows.copy_(out_rows * weight_total + part.out_BHTd * weight_part);
  lse_rows.copy_(lse);
}

struct Tensors {
  at::Tensor q, k, v, bias;
  Tensors document(int64_t begin, int64_t end) const {
    return {q.slice(2, begin, end), k.slice(2, begin, end), v.slice(2, begin, end), bias.slice(2, begin, end)};
  }
};

FlashOutput forward_document(const Tensors& in, int64_t window) {
  const FlashKernel& kernel = flash_kernel(in.q.device());
  const int64_t head_dim = in.q.size(3);
  const double scale = softmax_scale(head_dim);
  FlashOutput result = kernel.banded(in.q, in.k, in.v, window, scale);
  if (in.q.size(2) > window + 1) {
    const FarSquare far = make_far_square(in.q, in.k, in.v, in.bias, window, scale);
    FlashOutput part = kernel.causal(far.q, far.k, far.v, scale);
    part.out_BHTd = part.out_BHTd.slice(3, 0, head_dim);
    merge_rows(result, part, window + 1);
  }
  return result;
}

struct Gradients {
  at::Tensor dq, dk, dv, dbias;
};

Gradients backward_document(const at::Tensor& dout, const Tensors& in, const FlashOutput& merged, int64_t window) {
  const FlashKernel& kernel = flash_kernel(in.q.device());
  const int64_t num_tokens = in.q.size(2), head_dim = in.q.size(3);
  const double scale = softmax_scale(head_dim);
  FlashGradients near = kernel.banded_backward(dout, in.q, in.k, in.v, merged, window, scale);
  Gradients total{near.dq_BHTd, near.dk_BGTd, near.dv_BGTd, at::zeros_like(in.bias)};
  if (num_tokens > window + 1) {
    const int64_t first = window + 1, size = num_tokens - first;
    const int64_t columns = num_bias_columns(in.q.scalar_type());
    const FarSquare square = make_far_square(in.q, in.k, in.v, in.bias, window, scale);
    const FlashOutput rows{append_columns(merged.out_BHTd.slice(2, first), columns, 0.0),
                           merged.lse_BHT.slice(2, first)};
    const FlashGradients far = kernel.causal_backward(append_columns(dout.slice(2, first), columns, 0.0), square.q,
                                                      square.k, square.v, rows, scale);
    total.dq.slice(2, first).add_(far.dq_BHTd.slice(3, 0, head_dim));
    total.dk.slice(2, 0, size).add_(far.dk_BGTd.slice(3, 0, head_dim));
    total.dv.slice(2, 0, size).add_(far.dv_BGTd.slice(3, 0, head_dim));
    // dK[:, d] = scale * sum_q dS * c, and dbias = sum_q dS.
    total.dbias.slice(2, 0, size)
        .copy_(far.dk_BGTd.select(3, head_dim).to(in.bias.scalar_type()) / (query_column(scale) * scale));
  }
  return total;
}

// Runs `forward(begin, end)` on each document and joins the results.
template <class Forward>
FlashOutput join_documents(const DocumentOffsets& documents, const Forward& forward) {
  if (documents.size() == 2) return forward(documents[0], documents[1]);
  std::vector<at::Tensor> outs, lses;
  for (size_t j = 0; j + 1 < documents.size(); ++j) {
    FlashOutput part = forward(documents[j], documents[j + 1]);
    outs.push_back(part.out_BHTd);
    lses.push_back(part.lse_BHT);
  }
  return {at::cat(outs, 2), at::cat(lses, 2)};
}

class DelayedEvictionAttention : public torch::autograd::Function<DelayedEvictionAttention> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& bias, int64_t window, const DocumentOffsets& documents) {
    const Tensors in{q, k, v, bias};
    const FlashOutput result = join_documents(
        documents, [&](int64_t begin, int64_t end) { return forward_document(in.document(begin, end), window); });
    ctx->save_for_backward({q, k, v, bias, result.out_BHTd, result.lse_BHT});
    ctx->saved_data["window"] = window;
    ctx->saved_data["documents"] = documents;
    return result.out_BHTd;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensors in{saved[0], saved[1], saved[2], saved[3]};
    const FlashOutput merged{saved[4], saved[5]};
    const int64_t window = ctx->saved_data["window"].toInt();
    const DocumentOffsets documents = ctx->saved_data["documents"].toIntVector();
    const at::Tensor dout = grad_outputs[0];
    Gradients total;
    if (documents.size() == 2) {
      total = backward_document(dout, in, merged, window);
    } else {
      std::vector<at::Tensor> dq, dk, dv, dbias;
      for (size_t j = 0; j + 1 < documents.size(); ++j) {
        const int64_t begin = documents[j], end = documents[j + 1];
        const Gradients part =
            backward_document(dout.slice(2, begin, end), in.document(begin, end),
                              {merged.out_BHTd.slice(2, begin, end), merged.lse_BHT.slice(2, begin, end)}, window);
        dq.push_back(part.dq);
        dk.push_back(part.dk);
        dv.push_back(part.dv);
        dbias.push_back(part.dbias);
      }
      total = {at::cat(dq, 2), at::cat(dk, 2), at::cat(dv, 2), at::cat(dbias, 2)};
    }
    return {total.dq, total.dk, total.dv, total.dbias, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor delayed_eviction_attention(const at::Tensor& q_BHTd, const at::Tensor& k_BGTd, const at::Tensor& v_BGTd,
                                      const at::Tensor& bias_BGT, int64_t window, const DocumentOffsets& documents) {
  return DelayedEvictionAttention::apply(q_BHTd, k_BGTd, v_BGTd, bias_BGT, window, documents);
}

FlashOutput causal_attention(const at::Tensor& q_BHTd, const at::Tensor& k_BGTd, const at::Tensor& v_BGTd,
                             const DocumentOffsets& documents) {
  const at::NoGradGuard no_grad;
  const FlashKernel& kernel = flash_kernel(q_BHTd.device());
  const double scale = softmax_scale(q_BHTd.size(3));
  return join_documents(documents, [&](int64_t begin, int64_t end) {
    return kernel.causal(q_BHTd.slice(2, begin, end), k_BGTd.slice(2, begin, end), v_BGTd.slice(2, begin, end), scale);
  });
}

}  // namespace dms
