#include "model/student_layer.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include "model/attention.h"

namespace dms {

StudentRows::StudentRows(const Adapter& adapter, int64_t window, const DocumentOffsets& documents) {
  if (adapter.edits_queries()) {
    ranges_.emplace_back(0, documents.back());
  } else {
    for (size_t j = 0; j + 1 < documents.size(); ++j) {
      const int64_t begin = documents[j] + window + 1;
      if (begin < documents[j + 1]) ranges_.emplace_back(begin, documents[j + 1]);
    }
  }
  for (const auto& [begin, end] : ranges_) count_ += end - begin;
}

at::Tensor StudentRows::take(const at::Tensor& x, int64_t dim) const {
  if (ranges_.empty()) return x.slice(dim, 0, 0);
  if (ranges_.size() == 1) return x.slice(dim, ranges_[0].first, ranges_[0].second);
  std::vector<at::Tensor> parts;
  for (const auto& [begin, end] : ranges_) parts.push_back(x.slice(dim, begin, end));
  return at::cat(parts, dim);
}

at::Tensor StudentRows::replace(const at::Tensor& x, const at::Tensor& rows) const {
  if (count_ == x.size(0)) return rows;
  std::vector<at::Tensor> parts;
  int64_t at_x = 0, at_rows = 0;
  for (const auto& [begin, end] : ranges_) {
    parts.push_back(x.slice(0, at_x, begin));
    parts.push_back(rows.slice(0, at_rows, at_rows + end - begin));
    at_rows += end - begin;
    at_x = end;
  }
  parts.push_back(x.slice(0, at_x));
  return at::cat(parts);
}

StudentLayer::AttentionHalf StudentLayer::run_attention(const LayerWeights& weights, const SequenceContext& sequence,
                                                        const at::Tensor& noise_GT) const {
  AttentionHalf half;
  half.leaf_FD = rows_.take(x_TD_).detach().set_requires_grad(layer_ > 0);
  const at::Tensor x_TD = rows_.replace(x_TD_, half.leaf_FD);
  const at::Tensor normed_TD = rms_norm(x_TD, weights.input_norm, architecture_.rms_norm_eps);
  const AdapterReading reading = adapter_.read(layer_, x_TD, normed_TD);
  half.logit_GT = reading.logit_GT;
  half.relaxation = relax(half.logit_GT, noise_GT, eviction_, sequence.documents);
  const AttentionInputs in = attention_inputs(architecture_, weights, normed_TD, sequence.rope, reading.query);
  const at::Tensor attention_BHTd =
      delayed_eviction_attention(in.q_BHTd, in.k_BGTd, in.v_BGTd, half.relaxation.bias_GT.unsqueeze(0),
                                 eviction_.window, sequence.documents, eviction_.attention);
  half.attention_BHFd = rows_.take(attention_BHTd, 2);
  return half;
}

StudentLayer::Output StudentLayer::forward(const LayerWeights& weights, const SequenceContext& sequence,
                                           const at::Tensor& noise_GT, ActivationCheckpointing plan) {
  const bool keep = plan != ActivationCheckpointing::full;
  const at::AutoGradMode grad_mode(keep);
  AttentionHalf half = run_attention(weights, sequence, noise_GT);
  const at::Tensor x_FD = rows_.take(x_TD_), attention_BHFd = half.attention_BHFd.detach();
  Output output{{}, half.logit_GT.detach(), half.relaxation};
  if (keep) {
    attention_ = std::move(half);
    const KeptOfMlp mlp = plan == ActivationCheckpointing::none ? KeptOfMlp::inner_projections : KeptOfMlp::nothing;
    output.x_FD = finish_layer(architecture_, weights, x_FD, attention_BHFd, mlp, finish_);
  } else {
    output.x_FD = finish_layer(architecture_, weights, x_FD, attention_BHFd);
  }
  return output;
}

StudentLayer::Gradients StudentLayer::backward(const LayerWeights& weights, const SequenceContext& sequence,
                                               const at::Tensor& noise_GT, const at::Tensor& dout_FD,
                                               const at::Tensor& dalpha_GT, bool of_token_alpha) {
  AttentionHalf half = std::move(attention_);
  FinishState finish = std::move(finish_);
  if (!half.attention_BHFd.defined()) {
    const at::AutoGradMode with_grad(true);
    half = run_attention(weights, sequence, noise_GT);
    finish.y_TD = add_attention(architecture_, weights, rows_.take(x_TD_), half.attention_BHFd.detach());
  }
  FinishGradients below = finish_layer_backward(architecture_, weights, finish, dout_FD);
  finish = {};

  std::vector<at::Tensor> inputs;
  for (const Adapter::Parameter& parameter : adapter_.layer_parameters(layer_)) inputs.push_back(parameter.tensor);
  const bool into_input = layer_ > 0 && rows_.count() > 0;
  if (into_input) inputs.push_back(half.leaf_FD);
  Gradients gradients;
  gradients.parameters = torch::autograd::grad(
      {half.attention_BHFd, of_token_alpha ? half.relaxation.token_alpha_GT : half.relaxation.alpha_GT}, inputs,
      {below.dattention_BHTd, dalpha_GT});
  gradients.dx_FD = below.dx_TD;
  if (into_input) {
    gradients.dx_FD.add_(gradients.parameters.back());
    gradients.parameters.pop_back();
  }
  return gradients;
}

const std::vector<std::pair<std::string, ActivationCheckpointing>>& activation_checkpointing_names() {
  static const std::vector<std::pair<std::string, ActivationCheckpointing>> names{
      {"auto", ActivationCheckpointing::automatic},
      {"full", ActivationCheckpointing::full},
      {"selective", ActivationCheckpointing::selective},
      {"none", ActivationCheckpointing::none}};
  return names;
}

std::string name_of(ActivationCheckpointing plan) {
  for (const auto& [name, value] : activation_checkpointing_names()) {
    if (value == plan) return name;
  }
  TORCH_CHECK(false, "a plan without a name");
}

int64_t num_student_rows(const AdapterOptions& adapter, int64_t window, int64_t num_tokens) {
  return adapter.kind == AdapterKind::neuron ? num_tokens : std::max<int64_t>(0, num_tokens - window - 1);
}

int64_t recorded_layer_bytes(const Architecture& a, const AdapterOptions& adapter, int64_t window, int64_t num_tokens,
                             int64_t element_bytes) {
  constexpr int64_t kFloatBytes = sizeof(float);
  const int64_t queries = a.num_heads * a.head_dim, keys = a.num_kv_heads * a.head_dim;
  // The input norm's float32 input; q, k, v as attention reads them and its output.
  int64_t per_token = a.hidden_size * kFloatBytes + 2 * (queries + keys) * element_bytes;
  // The float32 features that the adapter's gradient is a product with; for the linear adapter also its own norm's.
  per_token += (adapter.kind == AdapterKind::linear ? 2 : 1) * a.hidden_size * kFloatBytes;
  if (element_bytes != kFloatBytes && adapter.kind == AdapterKind::linear) per_token += a.hidden_size * kFloatBytes;
  if (a.family.qk_norm) per_token += (queries + keys) * kFloatBytes;
  // Log-sum-exp, and what the relaxation is made of.
  constexpr int64_t kRelaxationTensors = 10;
  per_token += (a.num_heads + kRelaxationTensors * a.num_kv_heads) * kFloatBytes;
  return num_tokens * per_token +
         num_student_rows(adapter, window, num_tokens) * a.hidden_size * element_bytes;  // between attention and MLP
}

int64_t kept_activation_bytes(ActivationCheckpointing plan, const Architecture& a, const AdapterOptions& adapter,
                              int64_t window, int64_t num_tokens, int64_t element_bytes) {
  int64_t per_layer = num_tokens * a.hidden_size * element_bytes;  // the layer's input
  if (plan != ActivationCheckpointing::full) {
    per_layer += recorded_layer_bytes(a, adapter, window, num_tokens, element_bytes);
  }
  if (plan == ActivationCheckpointing::none) {
    per_layer += num_student_rows(adapter, window, num_tokens) * 2 * a.intermediate_size * element_bytes;
  }
  return a.num_layers * per_layer;
}

}  // namespace dms
