// Weights on an accelerator: a source whose tensors are copied there from another one when they are first used, once and
// for good.
#pragma once

#include <memory>
#include <vector>

#include "model/weights.h"

namespace dms {

class DeviceWeights final : public WeightSource {
 public:
  DeviceWeights(std::unique_ptr<WeightSource> source, at::Device device);

  const Architecture& architecture() const override { return source_->architecture(); }
  at::ScalarType dtype() const override { return source_->dtype(); }
  LayerWeights layer(int64_t index) override;
  at::Tensor embedding() override;
  at::Tensor final_norm() override;
  at::Tensor head() override;

 private:
  std::unique_ptr<WeightSource> source_;
  const at::Device device_;
  std::vector<LayerWeights> layers_;  // [L], empty until used
  at::Tensor embedding_, final_norm_, head_;
};

// `source` itself for a CPU.
std::unique_ptr<WeightSource> on_device(std::unique_ptr<WeightSource> source, at::Device device);

}  // namespace dms
