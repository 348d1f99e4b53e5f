#include "model/device_weights.h"

namespace dms {

DeviceWeights::DeviceWeights(std::unique_ptr<WeightSource> source, at::Device device)
    : source_(std::move(source)), device_(device), layers_(static_cast<size_t>(source_->architecture().num_layers)) {}

LayerWeights DeviceWeights::layer(int64_t index) {
  LayerWeights& kept = layers_[static_cast<size_t>(index)];
  if (kept.q_proj.defined()) return kept;
  LayerWeights weights = source_->layer(index);
  for (const auto member : kLayerTensors) {
    at::Tensor& tensor = weights.*member;
    if (tensor.defined()) tensor = tensor.to(device_);
  }
  return kept = weights;
}

at::Tensor DeviceWeights::embedding() {
  if (!embedding_.defined()) embedding_ = source_->embedding().to(device_);
  return embedding_;
}

at::Tensor DeviceWeights::final_norm() {
  if (!final_norm_.defined()) final_norm_ = source_->final_norm().to(device_);
  return final_norm_;
}

at::Tensor DeviceWeights::head() {
  if (architecture().tied_embeddings) return embedding();
  if (!head_.defined()) head_ = source_->head().to(device_);
  return head_;
}

std::unique_ptr<WeightSource> on_device(std::unique_ptr<WeightSource> source, at::Device device) {
  if (device.is_cpu()) return source;
  return std::make_unique<DeviceWeights>(std::move(source), device);
}

}  // namespace dms
