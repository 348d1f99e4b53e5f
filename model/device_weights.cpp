#include "model/device_weights.h"

namespace dms {

DeviceWeights::DeviceWeights(std::unique_ptr<WeightSource> source, at::Device device, bool keep)
    : source_(std::move(source)),
      device_(device),
      keep_(keep),
      layers_(static_cast<size_t>(source_->architecture().num_layers)) {}

LayerWeights DeviceWeights::layer(int64_t index) {
  LayerWeights& kept = layers_[static_cast<size_t>(index)];
  if (kept.q_proj.defined()) return kept;
  LayerWeights weights = source_->layer(index);
  for (at::Tensor* tensor : {&weights.input_norm, &weights.q_proj, &weights.k_proj, &weights.v_proj, &weights.o_proj,
                             &weights.q_bias, &weights.k_bias, &weights.v_bias, &weights.q_norm, &weights.k_norm,
                             &weights.post_norm, &weights.gate_proj, &weights.up_proj, &weights.down_proj}) {
    if (tensor->defined()) *tensor = tensor->to(device_);
  }
  if (keep_) kept = weights;
  return weights;
}

// Used at both ends of every step, and small beside the layers: always kept.
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

// A source that has slices has them because the whole is too large: they are not kept either.
VocabularySlice DeviceWeights::embedding_slice(int64_t index) {
  if (num_vocabulary_slices() == 1) return {0, embedding()};
  const auto [begin, rows_VD] = source_->embedding_slice(index);
  return {begin, rows_VD.to(device_)};
}

VocabularySlice DeviceWeights::head_slice(int64_t index) {
  if (num_vocabulary_slices() == 1) return {0, head()};
  const auto [begin, rows_VD] = source_->head_slice(index);
  return {begin, rows_VD.to(device_)};
}

std::unique_ptr<WeightSource> on_device(std::unique_ptr<WeightSource> source, at::Device device, bool keep) {
  if (device.is_cpu()) return source;
  return std::make_unique<DeviceWeights>(std::move(source), device, keep);
}

}  // namespace dms
