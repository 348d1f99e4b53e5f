#include "trainer/optimizer.h"

#include <torch/optim/adam.h>

#include <cmath>
#include <numbers>
#include <stdexcept>

#include "trainer/ordered_sum.h"

namespace dms {

double learning_rate_at(const OptimizerOptions& o, int64_t step, int64_t num_steps) {
  double rate = o.learning_rate;
  if (step < o.warmup_steps) rate *= static_cast<double>(step + 1) / static_cast<double>(o.warmup_steps);
  const double progress = static_cast<double>(step) / static_cast<double>(std::max<int64_t>(1, num_steps));
  switch (o.schedule) {
    case Schedule::constant:
      return rate;
    case Schedule::linear:
      return rate * (1.0 - progress);
    case Schedule::cosine:
      return rate * 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  }
  return rate;
}

double global_norm(const std::vector<at::Tensor>& gradients) {
  double sum = 0.0;
  for (const at::Tensor& gradient : gradients) sum += ordered_sum_of_squares(gradient);
  return std::sqrt(sum);
}

struct Optimizer::Impl {
  std::vector<Adapter::Parameter> parameters;
  double clip;
  torch::optim::Adam adam;

  static std::vector<at::Tensor> tensors(const std::vector<Adapter::Parameter>& parameters) {
    std::vector<at::Tensor> tensors;
    for (const auto& parameter : parameters) tensors.push_back(parameter.tensor);
    return tensors;
  }

  Impl(const Adapter& adapter, const OptimizerOptions& options)
      : parameters(adapter.parameters()),
        clip(options.clip),
        adam(tensors(parameters),
             torch::optim::AdamOptions(options.learning_rate).betas({options.beta1, options.beta2})) {}

  torch::optim::AdamParamState* find(const Adapter::Parameter& parameter) {
    const auto found = adam.state().find(parameter.tensor.unsafeGetTensorImpl());
    return found == adam.state().end() ? nullptr : static_cast<torch::optim::AdamParamState*>(found->second.get());
  }
};

Optimizer::Optimizer(const Adapter& adapter, const OptimizerOptions& options)
    : impl_(std::make_unique<Impl>(adapter, options)) {}
Optimizer::~Optimizer() = default;

void Optimizer::step(const std::vector<at::Tensor>& gradients, double gradient_norm, double learning_rate) {
  TORCH_CHECK(gradients.size() == impl_->parameters.size(), "one gradient a parameter");
  const double scale = impl_->clip > 0.0 && gradient_norm > impl_->clip ? impl_->clip / gradient_norm : 1.0;
  for (size_t p = 0; p < gradients.size(); ++p) impl_->parameters[p].tensor.mutable_grad() = gradients[p] * scale;
  static_cast<torch::optim::AdamOptions&>(impl_->adam.param_groups()[0].options()).lr(learning_rate);
  impl_->adam.step();
  impl_->adam.zero_grad();
}

std::vector<std::pair<std::string, at::Tensor>> Optimizer::state() const {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const auto& parameter : impl_->parameters) {
    const auto* state = impl_->find(parameter);
    if (state == nullptr) continue;
    tensors.emplace_back(parameter.name + ".exp_avg", state->exp_avg());
    tensors.emplace_back(parameter.name + ".exp_avg_sq", state->exp_avg_sq());
    tensors.emplace_back(parameter.name + ".step", at::scalar_tensor(state->step(), at::kLong));
  }
  return tensors;
}

void Optimizer::load_state(const std::vector<std::pair<std::string, at::Tensor>>& tensors) {
  if (tensors.empty()) return;
  const auto find = [&](const std::string& name) -> const at::Tensor& {
    const at::Tensor* found = find_tensor(tensors, name);
    if (found == nullptr) throw std::runtime_error("optimizer state '" + name + "' is missing");
    return *found;
  };
  for (const auto& parameter : impl_->parameters) {
    const at::Tensor& exp_avg = find(parameter.name + ".exp_avg");
    const at::Tensor& exp_avg_sq = find(parameter.name + ".exp_avg_sq");
    if (exp_avg.sizes() != parameter.tensor.sizes() || exp_avg_sq.sizes() != parameter.tensor.sizes()) {
      throw std::runtime_error("optimizer state of '" + parameter.name + "' has the wrong shape");
    }
    auto state = std::make_unique<torch::optim::AdamParamState>();
    state->exp_avg(exp_avg.clone());
    state->exp_avg_sq(exp_avg_sq.clone());
    state->step(find(parameter.name + ".step").item<int64_t>());
    impl_->adam.state()[parameter.tensor.unsafeGetTensorImpl()] = std::move(state);
  }
}

}  // namespace dms
