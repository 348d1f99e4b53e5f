#include "tests/support/dense_model.h"

#include <cmath>

#include "model/attention_reference.h"
#include "model/rope.h"

namespace dms {

namespace {

at::Tensor f64(const at::Tensor& x) { return x.to(at::kDouble); }

at::Tensor normalised(const at::Tensor& x_TD, const at::Tensor& weight_D, double eps) {
  return x_TD / at::sqrt(at::mean(x_TD * x_TD, {-1}, true) + eps) * weight_D;
}

// x [T, N * d] -> [1, N, T, d], each half-split pair rotated by its position's angle.
at::Tensor rotated_heads(const at::Tensor& x, int64_t num_heads, const RopeTables& tables) {
  const int64_t num_tokens = x.size(0), head_dim = x.size(1) / num_heads, half = head_dim / 2;
  const at::Tensor heads_NTd = x.view({num_tokens, num_heads, head_dim}).transpose(0, 1);
  const at::Tensor first = heads_NTd.slice(2, 0, half), second = heads_NTd.slice(2, half);
  const at::Tensor cos = f64(tables.cos_Td).slice(1, 0, half), sin = f64(tables.sin_Td).slice(1, 0, half);
  return at::cat({first * cos - second * sin, second * cos + first * sin}, 2).unsqueeze(0);
}

}  // namespace

at::Tensor dense_log_probabilities_TV(WeightSource& source, const std::vector<int32_t>& tokens,
                                      const DocumentOffsets& documents, int64_t window, const DenseEvictor& evictor) {
  const Architecture& a = source.architecture();
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  const RopeTables rope = make_rope_tables(a, num_tokens, at::TensorOptions().dtype(at::kFloat));
  at::Tensor x_TD = f64(source.embedding()).index_select(0, at::tensor(tokens, at::kInt));
  for (int64_t layer = 0; layer < a.num_layers; ++layer) {
    const LayerWeights w = source.layer(layer);
    const at::Tensor normed_TD = normalised(x_TD, f64(w.input_norm), a.rms_norm_eps);
    DenseEviction eviction;
    if (evictor) {
      eviction = evictor(layer, x_TD, normed_TD);
    } else {
      eviction.bias_GT = at::zeros({a.num_kv_heads, num_tokens}, at::kDouble);
    }
    at::Tensor q = at::matmul(normed_TD, f64(w.q_proj).t());
    if (eviction.kept_Hdd.defined()) {
      const at::Tensor q_HTd = q.view({num_tokens, a.num_heads, a.head_dim}).transpose(0, 1);
      q = at::bmm(q_HTd, f64(eviction.kept_Hdd)).transpose(0, 1).reshape({num_tokens, -1});
    }
    const at::Tensor k = at::matmul(normed_TD, f64(w.k_proj).t()), v = at::matmul(normed_TD, f64(w.v_proj).t());
    const at::Tensor attention_1HTd =
        dense_delayed_eviction_attention(rotated_heads(q, a.num_heads, rope), rotated_heads(k, a.num_kv_heads, rope),
                                         v.view({num_tokens, a.num_kv_heads, a.head_dim}).transpose(0, 1).unsqueeze(0),
                                         eviction.bias_GT.unsqueeze(0), window, documents);
    x_TD = x_TD + at::matmul(attention_1HTd[0].transpose(0, 1).reshape({num_tokens, -1}), f64(w.o_proj).t());
    const at::Tensor post_TD = normalised(x_TD, f64(w.post_norm), a.rms_norm_eps);
    const at::Tensor gate = at::matmul(post_TD, f64(w.gate_proj).t());
    const at::Tensor mixed = gate * at::sigmoid(gate) * at::matmul(post_TD, f64(w.up_proj).t());
    x_TD = x_TD + at::matmul(mixed, f64(w.down_proj).t());
  }
  const at::Tensor final_TD = normalised(x_TD, f64(source.final_norm()), a.rms_norm_eps);
  return at::log_softmax(at::matmul(final_TD, f64(source.head()).t()), -1);
}

DenseParameters dense_parameters(const Adapter& adapter) {
  DenseParameters parameters;
  for (const Adapter::Parameter& parameter : adapter.parameters()) {
    parameters[parameter.name] = f64(parameter.tensor.detach()).clone().set_requires_grad(true);
  }
  return parameters;
}

at::Tensor dense_eviction_logit_GT(const Adapter& adapter, const EvictionOptions& eviction,
                                   const DenseParameters& parameters, double rms_norm_eps, int64_t layer,
                                   const at::Tensor& x_TD, const at::Tensor& normed_TD) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".self_attn.";
  at::Tensor x_GT, bias_G;
  if (adapter.options().kind == AdapterKind::linear) {
    const std::string name = prefix + "dms_proj_alpha";
    const at::Tensor own_TD = normalised(x_TD, parameters.at(name + "_norm.weight"), rms_norm_eps);
    x_GT = at::matmul(parameters.at(name + ".weight"), own_TD.t());
    if (adapter.options().bias == AdapterBias::per_head) bias_G = parameters.at(name + ".bias");
  } else {
    const std::string name = prefix + "dms_neuron";
    const at::Tensor row_GD = adapter.options().rank == 0 ? parameters.at(name + ".weight")
                                                          : at::matmul(parameters.at(name + ".lora_B.weight"),
                                                                       parameters.at(name + ".lora_A.weight"));
    x_GT = at::matmul(row_GD, normed_TD.t());
    if (adapter.options().bias == AdapterBias::per_head) bias_G = parameters.at(name + ".bias");
  }
  const at::Tensor logit_GT = eviction.alpha_scale * x_GT - adapter.alpha_offset();
  return bias_G.defined() ? logit_GT + bias_G.unsqueeze(1) : logit_GT;
}

at::Tensor dense_kept_queries_Hdd(const Adapter& adapter, const Architecture& a, int64_t layer) {
  const auto constants = adapter.constants();
  const std::string prefix = "model.layers." + std::to_string(layer) + ".self_attn.dms_neuron.";
  const at::Tensor* index_G2 = find_tensor(constants, prefix + "index");
  if (index_G2 == nullptr) return {};
  const at::Tensor* angle_G = find_tensor(constants, prefix + "angle");
  at::Tensor kept_Hdd = at::eye(a.head_dim, at::kDouble).repeat({a.num_heads, 1, 1});
  for (int64_t g = 0; g < a.num_kv_heads; ++g) {
    const int64_t head = (*index_G2)[g][0].item<int64_t>(), channel = (*index_G2)[g][1].item<int64_t>();
    const double angle = angle_G == nullptr ? 0.0 : (*angle_G)[g].item<double>();
    const int64_t first = channel % (a.head_dim / 2), second = first + a.head_dim / 2;
    at::Tensor direction_d = at::zeros({a.head_dim}, at::kDouble);
    direction_d[first] = channel == first ? std::cos(angle) : -std::sin(angle);
    direction_d[second] = channel == first ? std::sin(angle) : std::cos(angle);
    kept_Hdd[head] -= at::outer(direction_d, direction_d);
  }
  return kept_Hdd;
}

at::Tensor dense_decisions_GT(const at::Tensor& logit_GT, int64_t shift, const DocumentOffsets& documents) {
  std::vector<at::Tensor> columns;
  for (size_t j = 0; j + 1 < documents.size(); ++j) {
    for (int64_t t = documents[j]; t < documents[j + 1]; ++t) {
      columns.push_back(t + shift < documents[j + 1] ? logit_GT.select(1, t + shift)
                                                     : at::full({logit_GT.size(0)}, -1e30, logit_GT.options()));
    }
  }
  return at::stack(columns, 1);
}

at::Tensor dense_kl_T(const at::Tensor& log_p_TV, const at::Tensor& log_q_TV) {
  return at::sum(at::exp(log_p_TV) * (log_p_TV - log_q_TV), -1);
}

}  // namespace dms
