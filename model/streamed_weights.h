// Weights that pass an accelerator by: layers come out of host memory one ahead of the one that computes, so that a
// model trains on a device that has room for two of its layers.
#pragma once

#include <cstdint>
#include <future>
#include <memory>

#include "model/upload.h"
#include "model/weights.h"

namespace dms {

// A step goes up the layers and down again, an evaluation up only: the next layer in the direction of the last move is
// on its way while the one asked for computes.  At most two layers are on the device, as long as the caller keeps no
// older one; embedding, final norm and head are there all the time.
class StreamedWeights final : public WeightSource {
 public:
  // `piece_bytes`: of pinned memory, twice.
  StreamedWeights(std::unique_ptr<WeightSource> source, at::Device device, int64_t piece_bytes = Upload::kPieceBytes);
  ~StreamedWeights() override;

  const Architecture& architecture() const override { return source_->architecture(); }
  at::ScalarType dtype() const override { return source_->dtype(); }
  LayerWeights layer(int64_t index) override;
  at::Tensor embedding() override { return embedding_; }
  at::Tensor final_norm() override { return final_norm_; }
  at::Tensor head() override { return head_; }

 private:
  struct Passing {
    int64_t index = -1;
    LayerWeights weights;
    std::future<void> copied;  // by a thread of its own: the source's pages may have to be read, and checked, first
  };
  Passing start(int64_t index);
  void forget_next();
  // Of the walk, after the move from `before` to `index`; -1: there is only one layer.
  int64_t layer_after(int64_t before, int64_t index) const;

  std::unique_ptr<WeightSource> source_;  // after construction only `next_`'s thread reads it
  Upload upload_;
  at::Tensor embedding_, final_norm_, head_;
  LayerWeights shapes_;  // of any layer, without data
  Passing current_, next_;
};

}  // namespace dms
