// What an eviction-logit adapter is: the trainable part of the program.  For every layer it maps what the attention
// block sees to one logit per token and KV head,
//   logit[g, t] = alpha_scale * x[g, t] - alpha_offset + bias[g],      x linear in a feature vector of token t.
// Adding an adapter: one file implementing this interface, and one line in make_adapter().
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/architecture.h"
#include "model/eviction.h"
#include "model/weights.h"
#include "recipes/schema.h"

namespace dms {

enum class AdapterKind { neuron, linear };
enum class AdapterBias { per_head, none };

struct AdapterOptions {
  AdapterKind kind = AdapterKind::linear;
  int64_t rank = 0;  // neuron: rank of the LoRA product, 0 = full
  AdapterBias bias = AdapterBias::per_head;
};
void describe(Schema& schema, AdapterOptions& options);

// The query channel a neuron adapter borrows for one KV head.
struct BorrowedChannel {
  int64_t head = 0, channel = 0;
};

class Adapter {
 public:
  struct Parameter {
    std::string name;   // Hugging Face style, e.g. model.layers.3.self_attn.dms_proj_alpha.weight
    at::Tensor tensor;  // float32, requires grad
  };

  Adapter(const Architecture& architecture, const EvictionOptions& eviction, const AdapterOptions& options);
  virtual ~Adapter() = default;

  const AdapterOptions& options() const { return options_; }
  double alpha_offset() const { return alpha_offset_; }
  void set_alpha_offset(double offset) { alpha_offset_ = offset; }

  // Float32 eviction logits [G, T] from the layer's input x_TD and normed_TD = rms_norm(x, input_norm), either dtype.
  at::Tensor logit_GT(int64_t layer, const at::Tensor& x_TD, const at::Tensor& normed_TD) const;

  // The features [T, D] float32 that the logit is linear in; logit = alpha_scale * (features W^T) - offset + bias.
  virtual at::Tensor features_TD(int64_t layer, const at::Tensor& x_TD, const at::Tensor& normed_TD) const = 0;
  // Sets the layer's weights so that its logits are as near as its rank allows to features W^T + intercept, both in
  // logit units: weight_GD [G, D], intercept_G [G].  Without a per-head bias the intercept must be one number.
  virtual void set_logit_function(int64_t layer, const at::Tensor& weight_GD, const at::Tensor& intercept_G);

  // [H, d] float32 of ones with zeros at borrowed query channels; undefined when the adapter borrows none.
  virtual at::Tensor query_mask_Hd(int64_t layer) const { return {}; }

  // The trainable tensors of one layer, in a fixed order.
  virtual std::vector<Parameter> layer_parameters(int64_t layer) const = 0;
  // All trainable tensors, layer by layer.
  std::vector<Parameter> parameters() const;
  // What is saved beside the parameters (names as in checkpoints/adapter_file.h); empty by default.
  virtual std::vector<std::pair<std::string, at::Tensor>> constants() const { return {}; }

 protected:
  // x[g, t] of the formula above, [T, G]; differentiable in parameters and activations.
  virtual at::Tensor project_TG(int64_t layer, const at::Tensor& features_TD) const = 0;
  virtual void set_projection(int64_t layer, const at::Tensor& weight_GD) = 0;

  const Architecture architecture_;
  const AdapterOptions options_;
  const double alpha_scale_;
  double alpha_offset_;
  std::vector<at::Tensor> bias_G_;  // per layer, in logit units; undefined entries without per-head bias
};

// `borrowed`: [L][G], for the neuron adapter only.  `source` gives initial values (norm weights) where needed.
std::unique_ptr<Adapter> make_adapter(const EvictionOptions& eviction, const AdapterOptions& options,
                                      WeightSource& source, const std::vector<std::vector<BorrowedChannel>>& borrowed);

// The tensor of that name; nullptr when there is none.
const at::Tensor* find_tensor(const std::vector<std::pair<std::string, at::Tensor>>& tensors, const std::string& name);

// Copies named tensors into the adapter's parameters.  Throws std::runtime_error on a missing name or wrong shape.
void load_parameters(Adapter& adapter, const std::vector<std::pair<std::string, at::Tensor>>& tensors);

}  // namespace dms
