#include "model/streamed_weights.h"

#include <c10/core/GradMode.h>

#include <utility>

namespace dms {

StreamedWeights::StreamedWeights(std::unique_ptr<WeightSource> source, at::Device device, int64_t piece_bytes)
    : source_(std::move(source)),
      upload_(device, piece_bytes),
      embedding_(source_->embedding().to(device)),
      final_norm_(source_->final_norm().to(device)),
      head_(architecture().tied_embeddings ? embedding_ : source_->head().to(device)) {
  const LayerWeights first = source_->layer(0);
  for (const auto member : kLayerTensors) {
    const at::Tensor& tensor = first.*member;
    // One element that stands for all: of the size of a layer there is nothing.
    if (tensor.defined()) shapes_.*member = at::empty({1}, embedding_.options()).expand(tensor.sizes());
  }
}

StreamedWeights::~StreamedWeights() { forget_next(); }

void StreamedWeights::forget_next() {
  if (next_.copied.valid()) {
    next_.copied.wait();  // whatever became of it: nobody asked
    upload_.wait_on_device();
  }
  next_ = {};
}

int64_t StreamedWeights::layer_after(int64_t before, int64_t index) const {
  const int64_t last = architecture().num_layers - 1;
  if (last == 0) return -1;
  if (index < before) return index > 0 ? index - 1 : 1;
  return index < last ? index + 1 : index - 1;
}

StreamedWeights::Passing StreamedWeights::start(int64_t index) {
  Passing passing;
  passing.index = index;
  for (const auto member : kLayerTensors) {
    const at::Tensor& shape = shapes_.*member;
    if (shape.defined()) passing.weights.*member = at::empty(shape.sizes(), shape.options());
  }
  upload_.begin();
  passing.copied = std::async(std::launch::async, [this, index, to = passing.weights] {
    const c10::AutoGradMode no_grad(false);  // thread-local
    const LayerWeights from = source_->layer(index);
    for (const auto member : kLayerTensors) {
      if ((to.*member).defined()) upload_.copy(to.*member, from.*member);
    }
    upload_.end();
  });
  return passing;
}

LayerWeights StreamedWeights::layer(int64_t index) {
  if (current_.index == index) return current_.weights;
  const int64_t before = std::exchange(current_, {}).index;
  if (next_.index != index) {  // not the way that was foreseen
    forget_next();
    next_ = start(index);
  }
  Passing arriving = std::exchange(next_, {});
  arriving.copied.get();
  upload_.wait_on_device();
  current_ = std::move(arriving);
  if (const int64_t after = layer_after(before, index); after >= 0) next_ = start(after);
  return current_.weights;
}

}  // namespace dms
