#include "trainer/threshold.h"

#include <gtest/gtest.h>

#include "tests/support/tensor_comparison.h"
#include "tests/support/tiny_source.h"
#include "tests/support/tiny_text.h"
#include "trainer/evaluate.h"

namespace dms {
namespace {

TEST(KeepShare, IsWhatShrinksTheCacheByTheRatio) {
  // 1024 tokens, 5x: 204.8 keys, 65 of them in the window, of 959 beyond it.
  EXPECT_DOUBLE_EQ(keep_share(5.0, 1024, 64), (204.8 - 65.0) / 959.0);
  EXPECT_LE(keep_share(16.0, 1024, 64), 0.0);
}

TEST(FitThreshold, MakesTheEvictorKeepTheShareAskedForByAnOffsetAlone) {
  const TinySource source;
  EvictionOptions eviction;
  eviction.window = 6;
  const auto adapter = make_adapter(eviction, {AdapterKind::linear, 0, AdapterBias::per_head}, *source, {});
  for (int64_t layer = 0; layer < 2; ++layer) {
    adapter->set_logit_function(layer, 2.0 * seeded_normal({2, 32}, 50 + static_cast<uint64_t>(layer)).to(at::kFloat),
                                at::tensor({3.0F, -3.0F}));
  }
  std::vector<at::Tensor> before;
  for (const auto& parameter : adapter->parameters()) before.push_back(parameter.tensor.clone());
  std::vector<Sample> windows;
  for (uint64_t i = 0; i < 3; ++i) windows.push_back(tiny_sample(100, 70 + i));

  for (const double share : {0.4, 0.12, 0.7}) {
    const ThresholdResult result = fit_threshold(*source, *adapter, eviction, share, windows, [](int64_t, int64_t) {});
    EXPECT_EQ(result.keep_share.size(), 3U);
    EvaluationOptions options;
    options.eviction = eviction;
    options.with_baselines = false;
    const EvaluationRecord record = evaluate(*source, *adapter, options, windows, [](int64_t, int64_t) {});
    double kept = 0.0, counted = 0.0;
    for (size_t layer = 0; layer < 2; ++layer) {
      for (size_t g = 0; g < 2; ++g) {
        kept += record.kept[layer][g];
        counted += record.counted[layer][g];
      }
    }
    EXPECT_NEAR(kept / counted, share, 0.02) << "after the last round decisions have all but settled";
  }
  for (size_t p = 0; p < before.size(); ++p) {
    EXPECT_TRUE(is_bit_equal(adapter->parameters()[p].tensor, before[p])) << "only the offset may move";
  }
}

}  // namespace
}  // namespace dms
