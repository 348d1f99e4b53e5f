// Adam on the adapter parameters, with the learning-rate schedule and global-norm clipping of the recipe.  Everything
// that a resumed run needs is in state().
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/adapter.h"

namespace dms {

enum class Schedule { constant, linear, cosine };

struct OptimizerOptions {
  double learning_rate = 3e-5;
  Schedule schedule = Schedule::constant;  // linear and cosine decay to 0 at the last step
  int64_t warmup_steps = 0;
  double clip = 1.0;  // global gradient norm; 0 = off
  double beta1 = 0.9, beta2 = 0.95;
};

double learning_rate_at(const OptimizerOptions& options, int64_t step, int64_t num_steps);

// L2 norm over all gradients: float64, fixed order.
double global_norm(const std::vector<at::Tensor>& gradients);

class Optimizer {
 public:
  Optimizer(const Adapter& adapter, const OptimizerOptions& options);
  ~Optimizer();

  // Clips by `gradient_norm` = global_norm(gradients) and updates the parameters.
  void step(const std::vector<at::Tensor>& gradients, double gradient_norm, double learning_rate);

  // First and second moments and step counts, by parameter name; empty before the first step.
  std::vector<std::pair<std::string, at::Tensor>> state() const;
  // Throws std::runtime_error on a missing name or wrong shape.
  void load_state(const std::vector<std::pair<std::string, at::Tensor>>& tensors);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dms
