#include "model/adapter_linear.h"

#include "model/block.h"

namespace dms {

namespace {

class LinearAdapter final : public Adapter {
 public:
  LinearAdapter(const EvictionOptions& eviction, const AdapterOptions& options, WeightSource& source)
      : Adapter(source.architecture(), eviction, options) {
    const Architecture& a = source.architecture();
    for (int64_t i = 0; i < a.num_layers; ++i) {
      norm_D_.push_back(source.layer(i).input_norm.to(at::kCPU, at::kFloat).clone().set_requires_grad(true));
      weight_GD_.push_back(at::zeros({a.num_kv_heads, a.hidden_size}, at::kFloat).set_requires_grad(true));
    }
  }

  at::Tensor features_TD(int64_t layer, const at::Tensor& x_TD, const at::Tensor&) const override {
    return rms_norm(x_TD.to(at::kFloat), norm_D_[static_cast<size_t>(layer)], architecture_.rms_norm_eps);
  }

  std::vector<Parameter> layer_parameters(int64_t layer) const override {
    const size_t i = static_cast<size_t>(layer);
    const std::string prefix = "model.layers." + std::to_string(layer) + ".self_attn.dms_proj_alpha";
    std::vector<Parameter> parameters{{prefix + ".weight", weight_GD_[i]}, {prefix + "_norm.weight", norm_D_[i]}};
    if (bias_G_[i].defined()) parameters.push_back({prefix + ".bias", bias_G_[i]});
    return parameters;
  }

 protected:
  at::Tensor project_TG(int64_t layer, const at::Tensor& features_TD) const override {
    return at::matmul(features_TD, weight_GD_[static_cast<size_t>(layer)].t());
  }

  void set_projection(int64_t layer, const at::Tensor& weight_GD) override {
    weight_GD_[static_cast<size_t>(layer)].copy_(weight_GD);
  }

 private:
  std::vector<at::Tensor> norm_D_, weight_GD_;  // per layer
};

}  // namespace

std::unique_ptr<Adapter> make_linear_adapter(const EvictionOptions& eviction, const AdapterOptions& options,
                                             WeightSource& source) {
  return std::make_unique<LinearAdapter>(eviction, options, source);
}

}  // namespace dms
