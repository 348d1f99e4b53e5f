// Layers that pass a device by are the model's, in any order, and the next one is on its way before it is asked for.
#include "model/streamed_weights.h"

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/tensor_comparison.h"
#include "tests/support/tiny_source.h"

namespace dms {
namespace {

// Smaller than a layer's tensors and no divisor of them.
constexpr int64_t kPieceBytes = 1000;

// Keeps which layers were read, and cannot read one of them.
class ReadingLog final : public WeightSource {
 public:
  explicit ReadingLog(WeightSource& model, int64_t damaged = -1) : model_(model), damaged_(damaged) {}

  const Architecture& architecture() const override { return model_.architecture(); }
  at::ScalarType dtype() const override { return model_.dtype(); }
  LayerWeights layer(int64_t index) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      read_.push_back(index);
    }
    changed_.notify_all();
    if (index == damaged_) throw std::runtime_error("layer " + std::to_string(index) + " is damaged");
    return model_.layer(index);
  }
  at::Tensor embedding() override { return model_.embedding(); }
  at::Tensor final_norm() override { return model_.final_norm(); }
  at::Tensor head() override { return model_.head(); }

  // What was read, when so much was: it is a thread beside the caller's that reads.
  std::vector<int64_t> read(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(60), [&] { return read_.size() >= count; });
    return read_;
  }

 private:
  WeightSource& model_;
  const int64_t damaged_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int64_t> read_;
};

void expect_layer(const LayerWeights& actual, const LayerWeights& expected, int64_t index) {
  for (const auto member : kLayerTensors) {
    ASSERT_EQ((actual.*member).defined(), (expected.*member).defined()) << index;
    if (!(expected.*member).defined()) continue;
    EXPECT_TRUE(is_bit_equal((actual.*member).cpu(), expected.*member)) << index;
  }
}

class StreamedWeightsTest : public ::testing::Test {
 protected:
  // The source starts with the layer that shows what a layer looks like.
  std::unique_ptr<StreamedWeights> streamed(int64_t damaged = -1) {
    auto log = std::make_unique<ReadingLog>(*model_, damaged);
    log_ = log.get();
    return std::make_unique<StreamedWeights>(std::move(log), at::kCPU, kPieceBytes);
  }

  // Of a source of its own: one source serves one thread at a time, and `model_` has the thread that reads ahead.
  LayerWeights of_model(int64_t layer) { return untouched_->layer(layer); }

  static constexpr TinyModel kModel{.num_layers = 4, .tied_embeddings = false};
  const TinySource model_{kModel}, untouched_{kModel};
  ReadingLog* log_ = nullptr;
};

TEST_F(StreamedWeightsTest, AStepsWalkReadsEachLayerOnceAndInAdvance) {
  const auto weights = streamed();
  struct Visit {
    int64_t layer;
    int64_t then;  // what is read meanwhile; -1: nothing more
  };
  const std::vector<Visit> two_steps = {{0, 1},  {1, 2}, {2, 3}, {3, 2}, {3, -1}, {2, 1}, {1, 0}, {0, 1},
                                        {0, -1}, {1, 2}, {2, 3}, {3, 2}, {3, -1}, {2, 1}, {1, 0}, {0, 1}};
  std::vector<int64_t> expected = {0, 0};
  for (const auto [layer, then] : two_steps) {
    expect_layer(weights->layer(layer), of_model(layer), layer);
    if (then >= 0) expected.push_back(then);
    ASSERT_EQ(log_->read(expected.size()), expected);
  }
}

TEST_F(StreamedWeightsTest, LayersInAnyOrderAreTheModelsAndStayTheCallers) {
  const auto weights = streamed();
  std::vector<std::pair<int64_t, LayerWeights>> held;
  for (const int64_t layer : {2, 0, 3, 3, 1, 2, 0, 1}) held.emplace_back(layer, weights->layer(layer));
  for (const auto& [layer, actual] : held) expect_layer(actual, of_model(layer), layer);
  EXPECT_TRUE(is_bit_equal(weights->embedding().clone(), untouched_->embedding()));
  EXPECT_TRUE(is_bit_equal(weights->final_norm().clone(), untouched_->final_norm()));
  EXPECT_TRUE(is_bit_equal(weights->head().clone(), untouched_->head()));
}

TEST_F(StreamedWeightsTest, ALayerThatCannotBeReadIsTheProblemOfWhoAsksForIt) {
  const auto weights = streamed(/*damaged=*/2);
  weights->layer(0);
  weights->layer(1);  // 2 is on its way
  EXPECT_THROW(weights->layer(2), std::runtime_error);
  expect_layer(weights->layer(3), of_model(3), 3);  // 2 is on its way again
  expect_layer(weights->layer(1), of_model(1), 1);
}

TEST_F(StreamedWeightsTest, AModelOfOneLayerReadsItOnce) {
  const TinySource model{TinyModel{.num_layers = 1}};
  auto log = std::make_unique<ReadingLog>(*model);
  ReadingLog& reading = *log;
  StreamedWeights weights(std::move(log), at::kCPU, kPieceBytes);
  for (int i = 0; i < 3; ++i) expect_layer(weights.layer(0), model->layer(0), 0);
  EXPECT_EQ(reading.read(2), (std::vector<int64_t>{0, 0}));
}

TEST_F(StreamedWeightsTest, OnAGpuLayersAreTheModels) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU";
  StreamedWeights weights(std::make_unique<ReadingLog>(*model_), at::Device(at::kCUDA, 0), kPieceBytes);
  for (const int64_t layer : {0, 1, 2, 3, 2, 1, 0, 3, 0, 1}) {
    const LayerWeights passing = weights.layer(layer);
    ASSERT_TRUE(passing.q_proj.is_cuda());
    expect_layer(passing, of_model(layer), layer);
  }
}

}  // namespace
}  // namespace dms
