#include "model/adapter_neuron.h"

#include <cmath>

namespace dms {

namespace {

// What a q norm needs to know about the borrowed heads of a layer.
struct NormedHeads {
  std::vector<at::Tensor> rows_dD;  // per KV head: the borrowed head's rows of q_proj
  at::Tensor channel_weight_G;      // the norm's weight at the borrowed channels, float32
};

struct MeanSquares {
  at::Tensor others_TG;  // of the head's channels but the borrowed one, over d, plus eps
  at::Tensor all_TG;     // of all its channels as the base model has them
};

class NeuronAdapter final : public Adapter {
 public:
  NeuronAdapter(const EvictionOptions& eviction, const AdapterOptions& options, WeightSource& source,
                const std::vector<std::vector<BorrowedChannel>>& borrowed)
      : Adapter(source.architecture(), eviction, options), borrowed_(borrowed) {
    const Architecture& a = architecture_;
    TORCH_CHECK(static_cast<int64_t>(borrowed.size()) == a.num_layers, "one list of borrowed channels a layer");
    for (int64_t i = 0; i < a.num_layers; ++i) {
      check_channels(borrowed[static_cast<size_t>(i)]);
      if (options.rank == 0) {
        row_GD_.push_back(at::zeros({a.num_kv_heads, a.hidden_size}, at::kFloat).set_requires_grad(true));
      } else {
        lora_A_rD_.push_back(initial_A(a.hidden_size).set_requires_grad(true));
        lora_B_Gr_.push_back(at::zeros({a.num_kv_heads, options.rank}, at::kFloat).set_requires_grad(true));
      }
      if (a.family.qk_norm) normed_heads_.push_back(normed_heads(source.layer(i), borrowed[static_cast<size_t>(i)]));
    }
    set_borrowed_share(0.0);
  }

  AdapterReading read(int64_t layer, const at::Tensor&, const at::Tensor& normed_TD) const override {
    AdapterReading reading;
    reading.query = edits_[static_cast<size_t>(layer)];
    at::Tensor x_TG = project_TG(layer, normed_TD.to(at::kFloat));
    if (architecture_.family.qk_norm) {
      const double per_channel = 1.0 / static_cast<double>(architecture_.head_dim);
      const MeanSquares base = mean_squares(layer, normed_TD);
      const at::Tensor scale_TG = at::rsqrt(base.others_TG + at::square(x_TG) * per_channel);
      x_TG = x_TG * scale_TG * normed_heads_[static_cast<size_t>(layer)].channel_weight_G;
      const at::Tensor ones_TH = at::ones({normed_TD.size(0), architecture_.num_heads}, x_TG.options());
      reading.query.ratio_TH =
          at::index_copy(ones_TH, 1, head_G(layer).to(x_TG.device()), at::sqrt(base.all_TG) * scale_TG);
    }
    reading.logit_GT = to_logit_GT(layer, x_TG);
    return reading;
  }

  at::Tensor features_TD(int64_t, const at::Tensor&, const at::Tensor& normed_TD) const override {
    return normed_TD.to(at::kFloat);
  }
  at::Tensor feature_scale_TG(int64_t layer, const at::Tensor& normed_TD) const override {
    if (!architecture_.family.qk_norm) return {};
    return at::rsqrt(mean_squares(layer, normed_TD).others_TG) *
           normed_heads_[static_cast<size_t>(layer)].channel_weight_G;
  }

  bool has_feature_scale() const override { return architecture_.family.qk_norm; }
  bool edits_queries() const override { return true; }
  void set_borrowed_share(double share) override {
    edits_.clear();
    for (const auto& channels : borrowed_) edits_.push_back(make_edit(channels, share));
  }

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
      at::Tensor index_G2 = at::empty({architecture_.num_kv_heads, 2}, at::kLong);
      at::Tensor angle_G = at::empty({architecture_.num_kv_heads}, at::kFloat);
      for (int64_t g = 0; g < architecture_.num_kv_heads; ++g) {
        const BorrowedChannel& c = borrowed_[static_cast<size_t>(i)][static_cast<size_t>(g)];
        index_G2[g][0] = c.head;
        index_G2[g][1] = c.channel;
        angle_G[g] = c.angle;
      }
      constants.emplace_back(name_prefix(i) + ".index", index_G2);
      if (any_turned()) constants.emplace_back(name_prefix(i) + ".angle", angle_G);
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

  void check_channels(const std::vector<BorrowedChannel>& channels) const {
    const Architecture& a = architecture_;
    TORCH_CHECK(static_cast<int64_t>(channels.size()) == a.num_kv_heads, "one borrowed channel a KV head");
    for (int64_t g = 0; g < a.num_kv_heads; ++g) {
      const BorrowedChannel& c = channels[static_cast<size_t>(g)];
      TORCH_CHECK(c.head / a.group_size() == g && c.channel < a.head_dim, "borrowed channel outside its group");
      TORCH_CHECK(c.angle == 0.0F || !a.family.qk_norm, "a q norm does not commute with a turn of the channel");
    }
  }

  bool any_turned() const {
    for (const auto& channels : borrowed_) {
      for (const BorrowedChannel& c : channels) {
        if (c.angle != 0.0F) return true;
      }
    }
    return false;
  }

  // q - (1 - share) (q . u) u for each borrowed direction u, which lies in one rotary pair.
  QueryEdit make_edit(const std::vector<BorrowedChannel>& channels, double share) const {
    const Architecture& a = architecture_;
    const int64_t half = a.head_dim / 2;
    QueryEdit edit;
    edit.after_rope = options_.zero_after_rope;
    edit.keep_Hd = at::ones({a.num_heads, a.head_dim}, at::kFloat);
    at::Tensor cross_Hd = at::zeros({a.num_heads, a.head_dim}, at::kFloat);
    bool turned = false;
    for (const BorrowedChannel& c : channels) {
      const double cosine = std::cos(static_cast<double>(c.angle)), sine = std::sin(static_cast<double>(c.angle));
      const int64_t partner = (c.channel + half) % a.head_dim;
      const double sign = c.channel < half ? 1.0 : -1.0;
      edit.keep_Hd[c.head][c.channel] = 1.0 - (1.0 - share) * cosine * cosine;
      if (c.angle == 0.0F) continue;
      turned = true;
      edit.keep_Hd[c.head][partner] = 1.0 - (1.0 - share) * sine * sine;
      cross_Hd[c.head][c.channel] = -(1.0 - share) * sign * sine * cosine;
      cross_Hd[c.head][partner] = -(1.0 - share) * sign * sine * cosine;
    }
    if (turned) edit.cross_Hd = cross_Hd;
    return edit;
  }

  NormedHeads normed_heads(const LayerWeights& weights, const std::vector<BorrowedChannel>& channels) const {
    NormedHeads heads;
    std::vector<at::Tensor> channel_weights;
    for (const BorrowedChannel& c : channels) {
      // A copy: a source of sharded weights holds a whole layer for a moment only.
      heads.rows_dD.push_back(
          weights.q_proj.narrow(0, c.head * architecture_.head_dim, architecture_.head_dim).clone());
      channel_weights.push_back(weights.q_norm[c.channel].to(at::kFloat));
    }
    heads.channel_weight_G = at::stack(channel_weights);
    return heads;
  }

  MeanSquares mean_squares(int64_t layer, const at::Tensor& normed_TD) const {
    std::vector<at::Tensor> all, own;
    const auto& channels = borrowed_[static_cast<size_t>(layer)];
    const NormedHeads& heads = normed_heads_[static_cast<size_t>(layer)];
    for (size_t g = 0; g < channels.size(); ++g) {
      const at::Tensor square_Td = at::square(at::linear(normed_TD, heads.rows_dD[g]).to(at::kFloat));
      all.push_back(at::mean(square_Td, {1}));
      own.push_back(square_Td.select(1, channels[g].channel));
    }
    const at::Tensor all_TG = at::stack(all, 1) + architecture_.rms_norm_eps;
    return {all_TG - at::stack(own, 1) / static_cast<double>(architecture_.head_dim), all_TG};
  }

  at::Tensor head_G(int64_t layer) const {
    std::vector<int64_t> heads;
    for (const BorrowedChannel& c : borrowed_[static_cast<size_t>(layer)]) heads.push_back(c.head);
    return at::tensor(heads, at::kLong);
  }

  // A fixed, full-rank start for A (B is zero, so x starts at zero): a cosine basis needs no random state.
  at::Tensor initial_A(int64_t hidden_size) const {
    const at::Tensor row = at::arange(1, options_.rank + 1, at::kFloat).unsqueeze(1);
    const at::Tensor column = at::arange(hidden_size, at::kFloat).unsqueeze(0) + 0.5;
    return at::cos(row * column * (M_PI / static_cast<double>(hidden_size))) /
           std::sqrt(static_cast<double>(hidden_size));
  }

  const std::vector<std::vector<BorrowedChannel>> borrowed_;  // [L][G]
  std::vector<QueryEdit> edits_;                              // per layer
  std::vector<NormedHeads> normed_heads_;                     // per layer, families with a q norm
  std::vector<at::Tensor> row_GD_, lora_A_rD_, lora_B_Gr_;    // per layer
};

}  // namespace

std::unique_ptr<Adapter> make_neuron_adapter(const EvictionOptions& eviction, const AdapterOptions& options,
                                             WeightSource& source,
                                             const std::vector<std::vector<BorrowedChannel>>& borrowed) {
  return std::make_unique<NeuronAdapter>(eviction, options, source, borrowed);
}

}  // namespace dms
