#include "checkpoints/fixed_neuron.h"

#include <cmath>
#include <map>
#include <vector>

#include "model/adapter.h"

namespace dms {

namespace {

const at::Tensor* find_layer_tensor(const AdapterFile& adapters, int64_t layer, const std::string& name) {
  return find_tensor(adapters.tensors, "model.layers." + std::to_string(layer) + ".self_attn." + name);
}

const at::Tensor& layer_tensor(const AdapterFile& adapters, int64_t layer, const std::string& name) {
  const at::Tensor* found = find_layer_tensor(adapters, layer, name);
  TORCH_CHECK(found != nullptr, "layer ", layer, " has no adapter tensor '", name, "'");
  return *found;
}

// What makes channel d-1 of a head's last rotary pair (d/2-1, d-1) out of the borrowed direction in it.
struct Turn {
  double first = 0.0, second = 1.0;  // the direction: first e[d/2-1] + second e[d-1]
  bool nothing() const { return first == 0.0 && second == 1.0; }
};

struct FixedGroup {
  int64_t borrowed_head = 0, first_head = 0;
  Turn turn;
};

Turn turn_of(int64_t channel, double angle, int64_t head_dim) {
  const bool second = channel == head_dim - 1;
  if (angle == 0.0) return second ? Turn{} : Turn{1.0, 0.0};
  return second ? Turn{-std::sin(angle), std::cos(angle)} : Turn{std::cos(angle), std::sin(angle)};
}

std::vector<FixedGroup> groups_of_layer(const AdapterFile& adapters, const Architecture& a, int64_t layer) {
  const at::Tensor index_G2 = layer_tensor(adapters, layer, "dms_neuron.index");
  const at::Tensor* angle_G = find_layer_tensor(adapters, layer, "dms_neuron.angle");
  std::vector<FixedGroup> groups;
  for (int64_t g = 0; g < a.num_kv_heads; ++g) {
    const double angle = angle_G == nullptr ? 0.0 : static_cast<double>((*angle_G)[g].item<float>());
    groups.push_back({index_G2[g][0].item<int64_t>(), g * a.group_size(),
                      turn_of(index_G2[g][1].item<int64_t>(), angle, a.head_dim)});
  }
  return groups;
}

// Turns the last pair of each listed head; rows_Fn [heads * d, ...].
void turn_rows(at::Tensor& rows, int64_t head, const Turn& turn, int64_t head_dim) {
  if (turn.nothing()) return;
  const int64_t at_first = head * head_dim + head_dim / 2 - 1, at_second = head * head_dim + head_dim - 1;
  const at::Tensor first = rows[at_first].to(at::kDouble), second = rows[at_second].to(at::kDouble);
  rows[at_first].copy_(turn.second * first - turn.first * second);
  rows[at_second].copy_(turn.first * first + turn.second * second);
}

// Swaps the blocks of two heads along dimension `dim`.
void swap_heads(at::Tensor& values, int64_t dim, int64_t head, int64_t other, int64_t head_dim) {
  if (head == other) return;
  const at::Tensor kept = values.narrow(dim, head * head_dim, head_dim).clone();
  values.narrow(dim, head * head_dim, head_dim).copy_(values.narrow(dim, other * head_dim, head_dim));
  values.narrow(dim, other * head_dim, head_dim).copy_(kept);
}

class FixedNeuron {
 public:
  FixedNeuron(const AdapterFile& adapters, const Architecture& a)
      : adapters_(adapters), a_(a), common_(common_offset(adapters, a).value()) {
    for (int64_t layer = 0; layer < a.num_layers; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".self_attn.";
      for (const char* name : {"q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias", "o_proj.weight"}) {
        place_[prefix + name] = {layer, name};
      }
    }
  }

  at::Tensor operator()(const std::string& name, const at::Tensor& base) const {
    const auto found = place_.find(name);
    if (found == place_.end()) return {};
    const auto& [layer, part] = found->second;
    at::Tensor edited = base.clone();
    const std::vector<FixedGroup> groups = groups_of_layer(adapters_, a_, layer);
    for (const FixedGroup& group : groups) {
      const int64_t kv_head = group.first_head / a_.group_size();
      if (part == "o_proj.weight") {
        swap_heads(edited, 1, group.borrowed_head, group.first_head, a_.head_dim);
      } else if (part.starts_with("k_proj")) {
        turn_rows(edited, kv_head, group.turn, a_.head_dim);
      } else {
        for (int64_t r = 0; r < a_.group_size(); ++r) turn_rows(edited, group.first_head + r, group.turn, a_.head_dim);
        swap_heads(edited, 0, group.borrowed_head, group.first_head, a_.head_dim);
        at::Tensor borrowed = edited[group.first_head * a_.head_dim + a_.head_dim - 1];
        if (part == "q_proj.bias") {
          borrowed.zero_();
        } else {
          borrowed.copy_(row_GD(layer)[kv_head]);
        }
      }
    }
    return edited;
  }

 private:
  // The rows that compute the eviction values, float64.
  at::Tensor row_GD(int64_t layer) const {
    const at::Tensor* full = find_layer_tensor(adapters_, layer, "dms_neuron.weight");
    const at::Tensor row_GD =
        full != nullptr ? full->to(at::kDouble)
                        : at::matmul(layer_tensor(adapters_, layer, "dms_neuron.lora_B.weight").to(at::kDouble),
                                     layer_tensor(adapters_, layer, "dms_neuron.lora_A.weight").to(at::kDouble));
    return row_GD * common_.row_scale_LG[layer].unsqueeze(1);
  }

  const AdapterFile& adapters_;
  const Architecture& a_;
  const CommonOffset common_;
  std::map<std::string, std::pair<int64_t, std::string>> place_;  // tensor -> layer and part
};

}  // namespace

std::optional<CommonOffset> common_offset(const AdapterFile& adapters, const Architecture& a) {
  CommonOffset common{adapters.alpha_offset, at::ones({a.num_layers, a.num_kv_heads}, at::kDouble)};
  if (adapters.bias == "none") return common;
  std::vector<at::Tensor> thresholds;
  for (int64_t layer = 0; layer < a.num_layers; ++layer) {
    const std::string name = (adapters.adapter == "linear" ? "dms_proj_alpha" : "dms_neuron") + std::string(".bias");
    thresholds.push_back(adapters.alpha_offset - layer_tensor(adapters, layer, name).to(at::kDouble));
  }
  const at::Tensor threshold_LG = at::stack(thresholds);
  const bool positive = (threshold_LG > 0).all().item<bool>(), negative = (threshold_LG < 0).all().item<bool>();
  if (!positive && !negative) return std::nullopt;
  if ((threshold_LG == threshold_LG.flatten()[0]).all().item<bool>()) {
    common.offset = threshold_LG.flatten()[0].item<double>();
    return common;
  }
  // The geometric mean keeps the rows near the size they were trained at.
  common.offset = std::exp(at::mean(at::log(at::abs(threshold_LG))).item<double>()) * (positive ? 1.0 : -1.0);
  common.row_scale_LG = common.offset / threshold_LG;
  return common;
}

std::string common_offset_objection(const AdapterFile& adapters, const Architecture& architecture) {
  if (adapters.bias == "none") return "";
  const std::string first_bias = adapters.adapter == "linear" ? "dms_proj_alpha.bias" : "dms_neuron.bias";
  if (find_layer_tensor(adapters, 0, first_bias) == nullptr) {
    return "its decisions have one threshold for all KV heads: train with adapter.bias: none";
  }
  if (common_offset(adapters, architecture)) return "";
  return "its decisions have one threshold for all KV heads; heads with one each convert only if all thresholds "
         "(alpha_offset - bias) have the same sign, which these do not: train with adapter.bias: none";
}

std::string fixed_neuron_objection(const AdapterFile& adapters, const Architecture& a) {
  const std::string remedy = ": train with adapter.channel: last";
  for (int64_t layer = 0; layer < a.num_layers; ++layer) {
    const at::Tensor* index_G2 = find_layer_tensor(adapters, layer, "dms_neuron.index");
    if (index_G2 == nullptr) return "it reads the last channel of a head" + remedy;
    const at::Tensor* angle_G = find_layer_tensor(adapters, layer, "dms_neuron.angle");
    for (int64_t g = 0; g < a.num_kv_heads; ++g) {
      const int64_t channel = (*index_G2)[g][1].item<int64_t>();
      const bool turned = angle_G != nullptr && (*angle_G)[g].item<float>() != 0.0F;
      const bool reachable =
          a.family.qk_norm ? channel == a.head_dim - 1 && !turned : channel % (a.head_dim / 2) == a.head_dim / 2 - 1;
      if (reachable) continue;
      return "it reads channel " + std::to_string(a.head_dim - 1) + " of a head, and layer " + std::to_string(layer) +
             " borrows channel " + std::to_string(channel) + remedy;
    }
  }
  return "";
}

TensorEdit fixed_neuron_edit(const AdapterFile& adapters, const Architecture& architecture) {
  return FixedNeuron(adapters, architecture);
}

}  // namespace dms
