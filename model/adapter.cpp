#include "model/adapter.h"

#include <ATen/core/grad_mode.h>
#include <stdexcept>

#include "model/adapter_linear.h"
#include "model/adapter_neuron.h"

namespace dms {

void describe(Schema& schema, AdapterOptions& o) {
  schema.choice<AdapterKind>("kind", o.kind, {{"neuron", AdapterKind::neuron}, {"linear", AdapterKind::linear}},
                             "neuron: borrow a query channel per KV head; linear: a projection of the residual stream");
  schema.integer("rank", o.rank, 0, 65536,
                 "neuron: rank of the LoRA product that replaces the borrowed rows; 0 = full");
  schema.choice<AdapterBias>(
      "bias", o.bias, {{"per_head", AdapterBias::per_head}, {"none", AdapterBias::none}},
      "per_head: a trainable intercept per KV head; none: what the nvidia and fastdms layouts hold");
  schema.choice<AdapterChannel>("channel", o.channel, {{"any", AdapterChannel::any}, {"last", AdapterChannel::last}},
                                "neuron: any: the least important query channel of the KV group; last: the last "
                                "channel, which the nvidia and fastdms layouts read");
  schema.flag("zero_after_rope", o.zero_after_rope,
              "neuron: take the channel out of the score after RoPE as well (the nvidia layout), not only before");
  schema.integer("zeroing_steps", o.zeroing_steps, 0, int64_t{1} << 31,
                 "neuron: steps over which the borrowed channel leaves the attention score; 0 = at once");
}

Adapter::Adapter(const Architecture& architecture, const EvictionOptions& eviction, const AdapterOptions& options)
    : architecture_(architecture),
      options_(options),
      alpha_scale_(eviction.alpha_scale),
      alpha_offset_(eviction.alpha_offset) {
  for (int64_t i = 0; i < architecture.num_layers; ++i) {
    bias_G_.push_back(options.bias == AdapterBias::per_head
                          ? at::zeros({architecture.num_kv_heads}, at::kFloat).set_requires_grad(true)
                          : at::Tensor());
  }
}

AdapterReading Adapter::read(int64_t layer, const at::Tensor& x_TD, const at::Tensor& normed_TD) const {
  return {to_logit_GT(layer, project_TG(layer, features_TD(layer, x_TD, normed_TD))), {}};
}

at::Tensor Adapter::to_logit_GT(int64_t layer, const at::Tensor& x_TG) const {
  at::Tensor logit_TG = alpha_scale_ * x_TG - alpha_offset_;
  const at::Tensor& bias_G = bias_G_[static_cast<size_t>(layer)];
  if (bias_G.defined()) logit_TG = logit_TG + bias_G;
  return logit_TG.transpose(0, 1);
}

void Adapter::set_logit_function(int64_t layer, const at::Tensor& weight_GD, const at::Tensor& intercept_G) {
  const at::NoGradGuard no_grad;
  set_projection(layer, weight_GD / alpha_scale_);
  at::Tensor& bias_G = bias_G_[static_cast<size_t>(layer)];
  if (bias_G.defined()) {
    bias_G.copy_(intercept_G + alpha_offset_);
  } else {
    TORCH_CHECK(at::allclose(intercept_G, at::full_like(intercept_G, -alpha_offset_)),
                "an adapter without per-head bias holds one intercept, -alpha_offset");
  }
}

std::vector<Adapter::Parameter> Adapter::parameters() const {
  std::vector<Parameter> all;
  for (int64_t i = 0; i < architecture_.num_layers; ++i) {
    for (Parameter& parameter : layer_parameters(i)) all.push_back(std::move(parameter));
  }
  return all;
}

std::unique_ptr<Adapter> make_adapter(const EvictionOptions& eviction, const AdapterOptions& options,
                                      WeightSource& source, const std::vector<std::vector<BorrowedChannel>>& borrowed) {
  std::unique_ptr<Adapter> adapter;
  switch (options.kind) {
    case AdapterKind::linear:
      adapter = make_linear_adapter(eviction, options, source);
      break;
    case AdapterKind::neuron:
      adapter = make_neuron_adapter(eviction, options, source, borrowed);
      break;
  }
  // Initial values are made on the CPU; parameters live where the activations will be.
  const at::Device device = source.final_norm().device();
  for (Adapter::Parameter& parameter : adapter->parameters()) parameter.tensor.set_data(parameter.tensor.to(device));
  return adapter;
}

const at::Tensor* find_tensor(const std::vector<std::pair<std::string, at::Tensor>>& tensors, const std::string& name) {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [&](const auto& entry) { return entry.first == name; });
  return found == tensors.end() ? nullptr : &found->second;
}

void load_parameters(Adapter& adapter, const std::vector<std::pair<std::string, at::Tensor>>& tensors) {
  const at::NoGradGuard no_grad;
  for (Adapter::Parameter& parameter : adapter.parameters()) {
    const at::Tensor* found = find_tensor(tensors, parameter.name);
    if (found == nullptr) throw std::runtime_error("adapter tensor '" + parameter.name + "' is missing");
    if (found->sizes() != parameter.tensor.sizes()) {
      throw std::runtime_error("adapter tensor '" + parameter.name + "' has the wrong shape");
    }
    parameter.tensor.copy_(*found);
  }
}

}  // namespace dms
