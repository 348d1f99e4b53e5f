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
#include "model/block.h"
#include "model/eviction.h"
#include "model/weights.h"
#include "recipes/schema.h"

namespace dms {

enum class AdapterKind { neuron, linear };
enum class AdapterBias { per_head, none };
enum class AdapterChannel { any, last };

struct AdapterOptions {
  AdapterKind kind = AdapterKind::linear;
  int64_t rank = 0;  // neuron: rank of the LoRA product, 0 = full
  AdapterBias bias = AdapterBias::per_head;
  AdapterChannel channel = AdapterChannel::any;  // neuron: where a channel may be borrowed
  bool zero_after_rope = false;                  // neuron: taken out of the score before RoPE and after it
  int64_t zeroing_steps = 0;                     // neuron: steps over which it is taken out
};
void describe(Schema& schema, AdapterOptions& options);

// What a neuron adapter borrows for one KV head: a query channel, turned by `angle` in its rotary pair (i, i + d/2) in
// the sense of RoPE.  The direction e_i turned is (cos, sin), e_{i+d/2} turned is (-sin, cos).
struct BorrowedChannel {
  int64_t head = 0, channel = 0;
  float angle = 0.0F;
};

// What an adapter says about a layer's tokens.
struct AdapterReading {
  at::Tensor logit_GT;  // float32 eviction logits
  QueryEdit query;      // what borrowing does to the student's queries
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

  // From the layer's input x_TD and normed_TD = rms_norm(x, input_norm), either dtype.
  virtual AdapterReading read(int64_t layer, const at::Tensor& x_TD, const at::Tensor& normed_TD) const;
  at::Tensor logit_GT(int64_t layer, const at::Tensor& x_TD, const at::Tensor& normed_TD) const {
    return read(layer, x_TD, normed_TD).logit_GT;
  }

  // The features [T, D] float32 that the logit is linear in; logit = alpha_scale * (features W^T) - offset + bias.
  // Where a KV head has a factor of its own for each token (feature_scale_TG, undefined: none), logit[g] is linear in
  // that factor times the features, nearly so as long as logits are small beside alpha_scale.
  virtual at::Tensor feature_scale_TG(int64_t, const at::Tensor&) const { return {}; }
  virtual bool has_feature_scale() const { return false; }
  virtual at::Tensor features_TD(int64_t layer, const at::Tensor& x_TD, const at::Tensor& normed_TD) const = 0;
  // Sets the layer's weights so that its logits are as near as its rank allows to features W^T + intercept, both in
  // logit units: weight_GD [G, D], intercept_G [G].  Without a per-head bias the intercept must be one number.
  virtual void set_logit_function(int64_t layer, const at::Tensor& weight_GD, const at::Tensor& intercept_G);

  // Whether the student's queries differ from the teacher's (AdapterReading::query).
  virtual bool edits_queries() const { return false; }
  // The share of what is borrowed that still takes part in the attention score: falls to 0 over zeroing_steps.
  virtual void set_borrowed_share(double) {}

  // The trainable tensors of one layer, in a fixed order.
  virtual std::vector<Parameter> layer_parameters(int64_t layer) const = 0;
  // All trainable tensors, layer by layer.
  std::vector<Parameter> parameters() const;
  // What is saved beside the parameters (names as in checkpoints/adapter_file.h); empty by default.
  virtual std::vector<std::pair<std::string, at::Tensor>> constants() const { return {}; }

 protected:
  // x[g, t] of the formula above, [T, G]; differentiable in parameters and activations.
  virtual at::Tensor project_TG(int64_t layer, const at::Tensor& features_TD) const = 0;
  at::Tensor to_logit_GT(int64_t layer, const at::Tensor& x_TG) const;
  virtual void set_projection(int64_t layer, const at::Tensor& weight_GD) = 0;

  const Architecture architecture_;
  const AdapterOptions options_;
  const double alpha_scale_;
  double alpha_offset_;
  std::vector<at::Tensor> bias_G_;  // per layer, in logit units; undefined entries without per-head bias
};

// `borrowed`: [L][G], for the neuron adapter only.  `source` gives initial values (norm weights), and the rows that
// share a q norm with what is borrowed.
std::unique_ptr<Adapter> make_adapter(const EvictionOptions& eviction, const AdapterOptions& options,
                                      WeightSource& source, const std::vector<std::vector<BorrowedChannel>>& borrowed);

// The tensor of that name; nullptr when there is none.
const at::Tensor* find_tensor(const std::vector<std::pair<std::string, at::Tensor>>& tensors, const std::string& name);

// Copies named tensors into the adapter's parameters.  Throws std::runtime_error on a missing name or wrong shape.
void load_parameters(Adapter& adapter, const std::vector<std::pair<std::string, at::Tensor>>& tensors);

}  // namespace dms
