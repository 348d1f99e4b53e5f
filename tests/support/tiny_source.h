// The weights of a tiny random model, through the reader that every run uses.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "checkpoints/model_dir.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/tiny_model.h"

namespace dms {

class TinySource {
 public:
  explicit TinySource(const TinyModel& model = {}, const std::function<void(std::vector<RawTensor>&)>& change = {}) {
    write_tiny_model(directory_.path(), model);
    if (change) {
      std::vector<RawTensor> tensors = tiny_model_tensors(model);
      change(tensors);
      write_test_file(directory_ / "model.safetensors", safetensors_bytes(tensors));
    }
    weights_ = open_weights(directory_.path(), at::kFloat);
  }

  WeightSource& operator*() const { return *weights_; }
  WeightSource* operator->() const { return weights_.get(); }
  const Architecture& architecture() const { return weights_->architecture(); }
  const std::string& path() const { return directory_.path(); }

 private:
  TemporaryDirectory directory_;
  std::unique_ptr<WeightSource> weights_;
};

}  // namespace dms
