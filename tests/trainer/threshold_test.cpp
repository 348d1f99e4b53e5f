#include "trainer/threshold.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/support/temporary_directory.h"
#include "tests/support/tensor_comparison.h"
#include "tests/support/tiny_source.h"
#include "tests/support/tiny_text.h"
#include "trainer/evaluate.h"
#include "trainer/trained_adapter.h"

namespace dms {
namespace {

TEST(KeepShare, IsWhatShrinksTheCacheByTheRatio) {
  // 1024 tokens, 5x: 204.8 keys, 65 of them in the window, of 959 beyond it.
  EXPECT_DOUBLE_EQ(keep_share(5.0, 1024, 64), (204.8 - 65.0) / 959.0);
  EXPECT_LE(keep_share(16.0, 1024, 64), 0.0);
}

TEST(ProportionalShares, AreOneMultipleUpToAllOfAHead) {
  const std::vector<double> shares = proportional_shares({0.1, 0.2, 0.3}, 0.1);
  for (size_t h = 0; h < 3; ++h) EXPECT_NEAR(shares[h], 0.05 * static_cast<double>(h + 1), 1e-12);
  // 3 times as much would be more than all of the last head: it keeps all, the others share the rest of 1.5.
  const std::vector<double> full = proportional_shares({0.1, 0.1, 0.8}, 0.5);
  EXPECT_NEAR(full[0], 0.25, 1e-12);
  EXPECT_NEAR(full[1], 0.25, 1e-12);
  EXPECT_NEAR(full[2], 1.0, 1e-12);
}

class FitThreshold : public ::testing::Test {
 protected:
  FitThreshold() {
    eviction_.window = 6;
    adapter_ = make_adapter(eviction_, {AdapterKind::linear, 0, AdapterBias::per_head}, *source_, {});
    for (int64_t layer = 0; layer < 2; ++layer) {
      adapter_->set_logit_function(layer,
                                   2.0 * seeded_normal({2, 32}, 50 + static_cast<uint64_t>(layer)).to(at::kFloat),
                                   at::tensor({3.0F, -3.0F}));
    }
    for (const auto& parameter : adapter_->parameters()) before_.push_back(parameter.tensor.clone());
    for (uint64_t i = 0; i < 3; ++i) windows_.push_back(tiny_sample(100, 70 + i));
  }

  ThresholdResult fit(double share, OffsetPer offset_per) {
    return fit_threshold(*source_, *adapter_, eviction_, share, offset_per, windows_, [](int64_t, int64_t) {});
  }

  // The share that each head keeps under `dms eval`.
  std::vector<double> kept() {
    EvaluationOptions options;
    options.eviction = eviction_;
    options.with_baselines = false;
    const EvaluationRecord record = evaluate(*source_, *adapter_, options, windows_, [](int64_t, int64_t) {});
    std::vector<double> shares;
    for (size_t layer = 0; layer < 2; ++layer) {
      for (size_t g = 0; g < 2; ++g) shares.push_back(record.kept[layer][g] / record.counted[layer][g]);
    }
    return shares;
  }
  static double mean(const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  }

  const TinySource source_;
  EvictionOptions eviction_;
  std::unique_ptr<Adapter> adapter_;
  std::vector<at::Tensor> before_;
  std::vector<Sample> windows_;
};

TEST_F(FitThreshold, MakesTheEvictorKeepTheShareAskedForByAnOffsetAlone) {
  for (const double share : {0.4, 0.12, 0.7}) {
    EXPECT_EQ(fit(share, OffsetPer::model).keep_share.size(), 3U);
    EXPECT_NEAR(mean(kept()), share, 0.02) << "after the last round decisions have all but settled";
  }
  for (size_t p = 0; p < before_.size(); ++p) {
    EXPECT_TRUE(is_bit_equal(adapter_->parameters()[p].tensor, before_[p])) << "only the offset may move";
  }
}

TEST_F(FitThreshold, PerHeadEveryHeadKeepsTheSameMultipleOfWhatItKept) {
  const std::vector<double> first = kept();
  fit(0.25, OffsetPer::kv_head);
  const std::vector<double> now = kept();
  EXPECT_NEAR(mean(now), 0.25, 0.02);
  const std::vector<double> wanted = proportional_shares(first, 0.25);
  for (size_t h = 0; h < now.size(); ++h) EXPECT_NEAR(now[h], wanted[h], 0.05) << h;
  EXPECT_EQ(adapter_->alpha_offset(), eviction_.alpha_offset);
  for (size_t p = 0; p < before_.size(); ++p) {
    const Adapter::Parameter parameter = adapter_->parameters()[p];
    EXPECT_EQ(is_bit_equal(parameter.tensor, before_[p]), !parameter.name.ends_with(".bias")) << parameter.name;
  }
}

TEST_F(FitThreshold, AnAdapterWithoutABiasGetsOneThatItsFileHolds) {
  TrainedAdapter trained;
  trained.file.adapter = "linear";
  trained.file.bias = "none";
  trained.file.window = trained.eviction.window = eviction_.window;
  trained.adapter = make_adapter(eviction_, {AdapterKind::linear, 0, AdapterBias::none}, *source_, {});
  for (int64_t layer = 0; layer < 2; ++layer) {
    trained.adapter->set_logit_function(layer, seeded_normal({2, 32}, 60 + static_cast<uint64_t>(layer)).to(at::kFloat),
                                        at::full({2}, -eviction_.alpha_offset));
  }
  for (const auto& parameter : trained.adapter->parameters()) {
    trained.file.tensors.emplace_back(parameter.name, parameter.tensor.detach());
  }
  const at::Tensor x_TD = seeded_normal({5, 32}, 9).to(at::kFloat);
  const at::Tensor before = trained.adapter->logit_GT(1, x_TD, x_TD);
  give_bias_per_head(trained, *source_);
  EXPECT_TRUE(is_bit_equal(trained.adapter->logit_GT(1, x_TD, x_TD), before));

  fit_threshold(*source_, *trained.adapter, eviction_, 0.3, OffsetPer::kv_head, windows_, [](int64_t, int64_t) {});
  take_over_changes(trained);
  const at::Tensor moved = trained.adapter->logit_GT(1, x_TD, x_TD);
  EXPECT_FALSE(is_bit_equal(moved, before));
  const TemporaryDirectory directory;
  write_adapter_file(directory.path(), trained.file);
  const TrainedAdapter again = load_trained_adapter(directory.path(), *source_, "");
  EXPECT_TRUE(is_bit_equal(again.adapter->logit_GT(1, x_TD, x_TD), moved));
}

}  // namespace
}  // namespace dms
