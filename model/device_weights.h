// Weights on an accelerator: a source whose layers are copied there from another one, once and for good, or anew each
// time they are asked for when the device has no room for all of them.
#pragma once

#include <memory>
#include <vector>

#include "model/weights.h"

namespace dms {

class DeviceWeights final : public WeightSource {
 public:
  // `keep`: a layer stays on the device after its first use.
  DeviceWeights(std::unique_ptr<WeightSource> source, at::Device device, bool keep);

  const Architecture& architecture() const override { return source_->architecture(); }
  at::ScalarType dtype() const override { return source_->dtype(); }
  LayerWeights layer(int64_t index) override;
  at::Tensor embedding() override;
  at::Tensor final_norm() override;
  at::Tensor head() override;
  int64_t num_vocabulary_slices() const override { return source_->num_vocabulary_slices(); }
  VocabularySlice embedding_slice(int64_t index) override;
  VocabularySlice head_slice(int64_t index) override;

 private:
  std::unique_ptr<WeightSource> source_;
  const at::Device device_;
  const bool keep_;
  std::vector<LayerWeights> layers_;  // [L], empty until used
  at::Tensor embedding_, final_norm_, head_;
};

// `source` itself for a CPU.
std::unique_ptr<WeightSource> on_device(std::unique_ptr<WeightSource> source, at::Device device, bool keep = true);

}  // namespace dms
