#include "model/adapter_neuron.h"

#include <cmath>

#include "recipes/user_error.h"

namespace dms {

namespace {

class NeuronAdapter final : public Adapter {
 public:
  NeuronAdapter(const EvictionOptions& eviction, const AdapterOptions& options, const Architecture& a,
                const std::vector<std::vector<BorrowedChannel>>& borrowed)
      : Adapter(a, eviction, options) {
    TORCH_CHECK(static_cast<int64_t>(borrowed.size()) == a.num_layers, "one list of borrowed channels a layer");
    for (int64_t i = 0; i < a.num_layers; ++i) {
      const auto& channels = borrowed[static_cast<size_t>(i)];
      TORCH_CHECK(static_cast<int64_t>(channels.size()) == a.num_kv_heads, "one borrowed channel a KV head");
      if (options.rank == 0) {
        row_GD_.push_back(at::zeros({a.num_kv_heads, a.hidden_size}, at::kFloat).set_requires_grad(true));
      } else {
        lora_A_rD_.push_back(initial_A(a.hidden_size).set_requires_grad(true));
        lora_B_Gr_.push_back(at::zeros({a.num_kv_heads, options.rank}, at::kFloat).set_requires_grad(true));
      }
      at::Tensor mask_Hd = at::ones({a.num_heads, a.head_dim}, at::kFloat);
      at::Tensor index_G2 = at::empty({a.num_kv_heads, 2}, at::kLong);
      for (int64_t g = 0; g < a.num_kv_heads; ++g) {
        const BorrowedChannel& c = channels[static_cast<size_t>(g)];
        TORCH_CHECK(c.head / a.group_size() == g && c.channel < a.head_dim, "borrowed channel outside its group");
        mask_Hd[c.head][c.channel] = 0.0;
        index_G2[g][0] = c.head;
        index_G2[g][1] = c.channel;
      }
      mask_Hd_.push_back(mask_Hd);
      index_G2_.push_back(index_G2);
    }
  }

  at::Tensor features_TD(int64_t, const at::Tensor&, const at::Tensor& normed_TD) const override {
    return normed_TD.to(at::kFloat);
  }

  at::Tensor query_mask_Hd(int64_t layer) const override { return mask_Hd_[static_cast<size_t>(layer)]; }

  std::vector<Parameter> layer_parameters(int64_t layer) const override {
    const size_t i = static_cast<size_t>(layer);
    const std::string prefix = name_prefix(layer);
    std::vector<Parameter> parameters;
    if (options_.rank == 0) {
      parameters.push_back({prefix + ".weight", row_GD_[i]});
    } else {
      parameters.push_back({prefix + ".lora_A.weight", lora_A_rD_[i]});
      parameters.push_back({prefix + ".lora_B.weight", lora_B_Gr_[i]});
    }
    if (bias_G_[i].defined()) parameters.push_back({prefix + ".bias", bias_G_[i]});
    return parameters;
  }

  std::vector<std::pair<std::string, at::Tensor>> constants() const override {
    std::vector<std::pair<std::string, at::Tensor>> constants;
    for (int64_t i = 0; i < architecture_.num_layers; ++i) {
      constants.emplace_back(name_prefix(i) + ".index", index_G2_[static_cast<size_t>(i)]);
    }
    return constants;
  }

 protected:
  at::Tensor project_TG(int64_t layer, const at::Tensor& features_TD) const override {
    const size_t i = static_cast<size_t>(layer);
    if (options_.rank == 0) return at::matmul(features_TD, row_GD_[i].t());
    return at::matmul(at::matmul(features_TD, lora_A_rD_[i].t()), lora_B_Gr_[i].t());
  }

  void set_projection(int64_t layer, const at::Tensor& weight_GD) override {
    const size_t i = static_cast<size_t>(layer);
    if (options_.rank == 0) {
      row_GD_[i].copy_(weight_GD);
      return;
    }
    // The best rank-r product: truncated SVD, its scale shared evenly between the factors.
    auto [u, s, vh] = at::linalg_svd(weight_GD, /*full_matrices=*/false);
    const int64_t rank = std::min(options_.rank, s.size(0));
    const at::Tensor root = at::sqrt(s.slice(0, 0, rank));
    lora_B_Gr_[i].zero_();
    lora_B_Gr_[i].slice(1, 0, rank).copy_(u.slice(1, 0, rank) * root);
    lora_A_rD_[i].slice(0, 0, rank).copy_(root.unsqueeze(1) * vh.slice(0, 0, rank));
  }

 private:
  static std::string name_prefix(int64_t layer) {
    return "model.layers." + std::to_string(layer) + ".self_attn.dms_neuron";
  }

  // A fixed, full-rank start for A (B is zero, so x starts at zero): a cosine basis needs no random state.
  at::Tensor initial_A(int64_t hidden_size) const {
    const at::Tensor row = at::arange(1, options_.rank + 1, at::kFloat).unsqueeze(1);
    const at::Tensor column = at::arange(hidden_size, at::kFloat).unsqueeze(0) + 0.5;
    return at::cos(row * column * (M_PI / static_cast<double>(hidden_size))) /
           std::sqrt(static_cast<double>(hidden_size));
  }

  std::vector<at::Tensor> row_GD_, lora_A_rD_, lora_B_Gr_;  // per layer
  std::vector<at::Tensor> mask_Hd_, index_G2_;
};

}  // namespace

std::unique_ptr<Adapter> make_neuron_adapter(const EvictionOptions& eviction, const AdapterOptions& options,
                                             WeightSource& source,
                                             const std::vector<std::vector<BorrowedChannel>>& borrowed) {
  const Architecture& a = source.architecture();
  if (a.family.qk_norm) {
    throw UserError(
        "adapter.kind", "'neuron' is not available for model_type '" + a.family.model_type + "'",
        {"its q norm makes the borrowed channel a nonlinear function of the input", "set adapter.kind: linear"});
  }
  return std::make_unique<NeuronAdapter>(eviction, options, a, borrowed);
}

}  // namespace dms
