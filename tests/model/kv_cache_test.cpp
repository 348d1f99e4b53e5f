#include "model/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "model/attention_reference.h"
#include "model/block.h"
#include "model/hard_student.h"
#include "tests/support/dense_model.h"
#include "tests/support/tensor_comparison.h"
#include "tests/support/tiny_source.h"
#include "tests/support/tiny_text.h"

namespace dms {
namespace {

constexpr int64_t kLayers = 2, kHeads = 6, kKvHeads = 3, kHeadDim = 8;

// A random sequence's attention inputs in every layer.  KV head g evicts about g/3 of its keys.
struct Sequence {
  std::vector<at::Tensor> q, k, v, logit;

  explicit Sequence(int64_t num_tokens, uint64_t seed = 1) {
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      q.push_back(seeded_normal({1, kHeads, num_tokens, kHeadDim}, ++seed));
      k.push_back(seeded_normal({1, kKvHeads, num_tokens, kHeadDim}, ++seed));
      v.push_back(seeded_normal({1, kKvHeads, num_tokens, kHeadDim}, ++seed));
      const at::Tensor threshold_G1 = at::tensor({-10.0, -0.43, 0.43}, at::kDouble).unsqueeze(1);
      logit.push_back(seeded_normal({kKvHeads, num_tokens}, ++seed) + threshold_G1);
    }
  }
  int64_t num_tokens() const { return q[0].size(2); }
};

CompactCache make_cache(int64_t window, int64_t shift, at::ScalarType dtype = at::kDouble) {
  return {std::make_shared<KvPool>(kHeadDim, at::TensorOptions().dtype(dtype), tight_layout(at::kCPU)), kLayers,
          kKvHeads, window, shift};
}

// Feeds tokens [begin, end) and returns layer 0's and layer 1's attention.
std::vector<at::Tensor> feed(CompactCache& cache, const Sequence& s, int64_t begin, int64_t end) {
  std::vector<at::Tensor> outs;
  for (size_t layer = 0; layer < kLayers; ++layer) {
    outs.push_back(cache.attend(static_cast<int64_t>(layer), s.q[layer].slice(2, begin, end),
                                s.k[layer].slice(2, begin, end), s.v[layer].slice(2, begin, end),
                                s.logit[layer].slice(1, begin, end)));
  }
  return outs;
}

std::vector<at::Tensor> feed_in_chunks(CompactCache& cache, const Sequence& s, int64_t chunk) {
  std::vector<std::vector<at::Tensor>> parts(kLayers);
  for (int64_t begin = 0; begin < s.num_tokens(); begin += chunk) {
    const auto outs = feed(cache, s, begin, std::min(begin + chunk, s.num_tokens()));
    for (size_t layer = 0; layer < kLayers; ++layer) parts[layer].push_back(outs[layer]);
  }
  return {at::cat(parts[0], 2), at::cat(parts[1], 2)};
}

bool evicts(const Sequence& s, size_t layer, int64_t head, int64_t key, int64_t shift, int64_t num_seen) {
  return key + shift < num_seen && s.logit[layer][head][key + shift].item<double>() > 0.0;
}

// The definition: after token n - 1, the window + 1 newest, those decided to stay, and those not yet decided about.
std::set<int64_t> live_keys(const Sequence& s, size_t layer, int64_t head, int64_t window, int64_t shift, int64_t n) {
  std::set<int64_t> live;
  for (int64_t k = 0; k < n; ++k) {
    if (n - 1 - k <= window || !evicts(s, layer, head, k, shift, n)) live.insert(k);
  }
  return live;
}

TEST(CompactCache, EqualsTheDenseHardMaskInChunksOfAnyLength) {
  const Sequence s(300);
  for (const auto& [window, shift] : {std::pair<int64_t, int64_t>{16, 1}, {16, 0}, {0, 1}, {0, 0}, {400, 1}}) {
    for (int64_t chunk : {1, 7, 256, 300}) {
      SCOPED_TRACE(::testing::Message() << "window " << window << " shift " << shift << " chunk " << chunk);
      CompactCache cache = make_cache(window, shift);
      const auto outs = feed_in_chunks(cache, s, chunk);
      for (size_t layer = 0; layer < kLayers; ++layer) {
        const at::Tensor gone_GT = dense_decisions_GT(s.logit[layer], shift, {0, 300}) > 0;
        const at::Tensor bias_GT = at::zeros({kKvHeads, 300}, at::kDouble).masked_fill(gone_GT, kGoneBias);
        EXPECT_TRUE(is_near(outs[layer],
                            dense_delayed_eviction_attention(s.q[layer], s.k[layer], s.v[layer], bias_GT.unsqueeze(0),
                                                             window, {0, 300}),
                            1e-12));
      }
    }
  }
}

TEST(CompactCache, HoldsTheNewestTheSurvivorsAndTheUndecidedAfterEveryToken) {
  const Sequence s(80);
  for (const auto& [window, shift] : {std::pair<int64_t, int64_t>{9, 1}, {9, 0}, {0, 1}, {0, 0}}) {
    CompactCache cache = make_cache(window, shift);
    int64_t seen = 0;
    for (int64_t chunk : {1, 1, 5, 1, 20, 1, 1, 1, 30, 1, 1, 17}) {
      feed(cache, s, seen, seen + chunk);
      seen += chunk;
      for (int64_t layer = 0; layer < kLayers; ++layer) {
        ASSERT_EQ(cache.num_tokens(layer), seen);
        for (int64_t g = 0; g < kKvHeads; ++g) {
          const HeadCache& head = std::as_const(cache).head(layer, g);
          const auto& positions = head.positions();
          const std::set<int64_t> expected = live_keys(s, static_cast<size_t>(layer), g, window, shift, seen);
          ASSERT_EQ(std::set<int64_t>(positions.begin(), positions.end()), expected);
          ASSERT_EQ(head.num_live(), static_cast<int64_t>(expected.size()));
          // Every slot still holds its own position's key and value.
          const at::Tensor index_n = at::tensor(std::vector<int32_t>(positions), at::kInt);
          const auto row = [&](const std::vector<at::Tensor>& x) {
            return x[static_cast<size_t>(layer)][0][g].index_select(0, index_n);
          };
          ASSERT_TRUE(is_bit_equal(head.keys(at::kDouble), row(s.k)));
          ASSERT_TRUE(is_bit_equal(head.values(at::kDouble), row(s.v)));
        }
      }
    }
    ASSERT_EQ(seen, 80);
  }
}

TEST(CompactCache, CountsTheKeysThatQueriesRead) {
  const Sequence s(60);
  for (int64_t chunk : {1, 13, 60}) {
    CompactCache cache = make_cache(5, 1);
    feed_in_chunks(cache, s, chunk);
    int64_t expected = 0;
    for (size_t layer = 0; layer < kLayers; ++layer) {
      for (int64_t g = 0; g < kKvHeads; ++g) {
        for (int64_t q = 0; q < 60; ++q) expected += static_cast<int64_t>(live_keys(s, layer, g, 5, 1, q + 1).size());
      }
    }
    EXPECT_EQ(cache.num_keys_read(), expected) << "chunk " << chunk;
  }
}

TEST(CompactCache, ReusesTheSlotsOfExpiredKeys) {
  CompactCache cache = make_cache(4, 0);
  Sequence s(200);
  s.logit[0].fill_(1.0);  // everything goes
  s.logit[1].fill_(1.0);
  int64_t largest = 0;
  for (int64_t t = 0; t < 200; ++t) {
    feed(cache, s, t, t + 1);
    largest = std::max(largest, cache.allocated_bytes());
  }
  EXPECT_EQ(cache.num_live_keys(), kLayers * kKvHeads * 5);
  EXPECT_EQ(largest, kLayers * kKvHeads * cache.pool().page_bytes());
  EXPECT_EQ(cache.pool().allocated_bytes(), largest);
}

TEST(CompactCache, AllocatesAtMost15PercentMoreThanItsLiveKeysNeed) {
  // SmolLM2's head: 64 dimensions, window 64, T = 1024, survivors from 0 to 94 % by head.
  constexpr int64_t kTokens = 1024;
  CompactCache cache(std::make_shared<KvPool>(64, at::TensorOptions().dtype(at::kFloat), tight_layout(at::kCPU)), 1, 9,
                     64, 1);
  const at::Tensor rate_G1 = at::tensor({0.0, 0.01, 0.03, 0.05, 0.08, 0.1, 0.2, 0.4, 0.94}, at::kDouble).unsqueeze(1);
  const at::Tensor logit_GT =
      at::erfinv(1.0 - 2.0 * rate_G1.clamp_min(1e-9)) * std::sqrt(2.0) + seeded_normal({9, kTokens}, 3);
  const at::Tensor k = seeded_normal({1, 9, kTokens, 64}, 1).to(at::kFloat);
  for (int64_t begin = 0; begin < kTokens; begin += 256) {
    const auto part = [&](const at::Tensor& x) { return x.slice(2, begin, begin + 256); };
    cache.attend(0, part(k), part(k), part(k), logit_GT.slice(1, begin, begin + 256));
  }
  int64_t live = 0;
  for (int64_t g = 0; g < 9; ++g) {
    const int64_t survivors =
        (dense_decisions_GT(logit_GT, 1, {0, kTokens})[g].slice(0, 0, kTokens - 65) <= 0).sum().item<int64_t>();
    live += survivors + 65;
  }
  EXPECT_EQ(cache.num_live_keys(), live);
  EXPECT_EQ(cache.live_bytes(), live * 64 * 2 * 4);
  EXPECT_LE(static_cast<double>(cache.pool().allocated_bytes()), 1.15 * static_cast<double>(cache.live_bytes()));
  EXPECT_GE(cache.pool().allocated_bytes(), cache.allocated_bytes());
  int64_t pages = 0;
  for (int64_t g = 0; g < 9; ++g) pages += std::as_const(cache).head(0, g).num_pages();
  EXPECT_EQ(cache.allocated_bytes(), pages * cache.pool().page_bytes());
  EXPECT_GE(cache.pool().page_bytes(), kCpuPageRows * (64 * 2 * 4 + 8)) << "reports less than it holds";
}

// Rows in fewer bits: what attention sees is exactly the stored rows, token by token and in chunks.
TEST(CompactCache, InFewerBitsIsAttentionOverTheRowsAsStored) {
  const Sequence s(150);
  for (const at::ScalarType stored : {at::kBFloat16, at::kChar, at::kFloat8_e4m3fn}) {
    for (int64_t chunk : {1, 40}) {
      SCOPED_TRACE(::testing::Message() << at::toString(stored) << " chunk " << chunk);
      Sequence inputs = s;
      for (size_t layer = 0; layer < kLayers; ++layer) {
        for (auto* x : {&inputs.q, &inputs.k, &inputs.v, &inputs.logit}) (*x)[layer] = (*x)[layer].to(at::kFloat);
      }
      CompactCache cache = make_cache(16, 1, stored);
      const auto outs = feed_in_chunks(cache, inputs, chunk);
      for (size_t layer = 0; layer < kLayers; ++layer) {
        const at::Tensor gone_GT = dense_decisions_GT(s.logit[layer], 1, {0, 150}) > 0;
        const at::Tensor bias_GT = at::zeros({kKvHeads, 150}, at::kDouble).masked_fill(gone_GT, kGoneBias);
        const auto as_stored = [&](const at::Tensor& x) {
          return from_stored(to_stored(x.to(at::kFloat), stored), at::kDouble);
        };
        EXPECT_TRUE(is_near(outs[layer],
                            dense_delayed_eviction_attention(s.q[layer], as_stored(s.k[layer]), as_stored(s.v[layer]),
                                                             bias_GT.unsqueeze(0), 16, {0, 150}),
                            3e-6));
      }
      const int64_t row_bytes = 2 * stored_row_bytes(kHeadDim, stored);
      EXPECT_EQ(cache.live_bytes(), cache.num_live_keys() * row_bytes);
      EXPECT_GE(cache.allocated_bytes(), cache.num_live_keys() * (row_bytes + 8));
    }
  }
}

// The budget is never exceeded, whatever is fed, and the keys that remain beyond the window are those with the lowest
// eviction logits of all layers and heads.
TEST(CompactCache, MakeRoomKeepsTheKeysThatTheEvictorWantsMost) {
  Sequence s(200);
  for (at::Tensor& logit : s.logit) logit -= 20.0;  // the evictor itself would keep everything
  constexpr int64_t kBudget = kLayers * kKvHeads * 60 * (2 * kHeadDim * 8 + 8);
  CompactCache cache = make_cache(16, 1);
  int64_t seen = 0;
  for (int64_t chunk : {10, 5, 1, 1, 30, 1, 1, 1, 20, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 20, 1, 1, 1, 20, 1, 1, 1}) {
    std::vector<std::set<int64_t>> before;
    for (int64_t i = 0; i < kLayers * kKvHeads; ++i) {
      const auto& positions = std::as_const(cache).head(i / kKvHeads, i % kKvHeads).positions();
      before.emplace_back(positions.begin(), positions.end());
    }
    ASSERT_TRUE(cache.make_room(chunk, kBudget));
    double highest_kept = -1e9, lowest_dropped = 1e9;
    for (int64_t i = 0; i < kLayers * kKvHeads; ++i) {
      const HeadCache& head = std::as_const(cache).head(i / kKvHeads, i % kKvHeads);
      const std::set<int64_t> after(head.positions().begin(), head.positions().end());
      for (int64_t key : before[static_cast<size_t>(i)]) {
        if (seen - 1 - key <= 16) {
          ASSERT_TRUE(after.contains(key)) << "a key of the window went";
          continue;
        }
        const double logit = s.logit[static_cast<size_t>(i / kKvHeads)][i % kKvHeads][key + 1].item<double>();
        if (after.contains(key)) {
          highest_kept = std::max(highest_kept, logit);
        } else {
          lowest_dropped = std::min(lowest_dropped, logit);
        }
      }
    }
    ASSERT_LE(highest_kept, lowest_dropped + 1e-6);
    feed(cache, s, seen, seen + chunk);
    seen += chunk;
    ASSERT_LE(cache.allocated_bytes(), kBudget);
  }
  EXPECT_GT(seen, 2 * 60);
  EXPECT_GT(cache.num_live_keys(), kLayers * kKvHeads * 60 * 8 / 10) << "throws away much more than it must";
  EXPECT_FALSE(cache.make_room(1, 1000));
  EXPECT_EQ(cache.num_live_keys(), kLayers * kKvHeads * 17) << "the window stays";
}

TEST(HeadCache, RefusesADecisionAboutAKeyThatIsGone) {
  KvPool pool(4, at::TensorOptions().dtype(at::kFloat), tight_layout(at::kCPU));
  HeadCache cache(pool);
  cache.append({at::ones({3, 4}), {}}, {at::ones({3, 4}), {}}, {0, 1, 2}, {kUndecided, kUndecided, kUndecided});
  cache.decide(0, 1.0F);
  cache.drop_expired(2, 1);
  EXPECT_EQ(cache.num_live(), 2);
  EXPECT_THROW(cache.decide(0, -1.0F), c10::Error);
}

TEST(SinksAndWindow, KeepsExactlyTheFirstFourAndTheNewest) {
  const TinySource source;
  const Architecture& a = source.architecture();
  const RopeTables rope = make_rope_tables(a, 60, at::TensorOptions().dtype(at::kFloat));
  const at::Tensor x_TD = seeded_normal({60, 32}, 1).to(at::kFloat);
  for (int64_t num_sinks : {0, 4}) {
    for (int64_t num_live : {1, 2, 5, 12, 60, 100}) {
      SCOPED_TRACE(::testing::Message() << num_sinks << " sinks, " << num_live << " live");
      const auto policy = sinks_and_window_policy(a.num_kv_heads, num_sinks, num_live);
      CompactCache cache = make_cache(a, *policy, x_TD.options());
      for (int64_t begin = 0; begin < 60; begin += 7) {
        const int64_t end = std::min<int64_t>(begin + 7, 60);
        hard_student_chunk(*source, *policy, cache, x_TD.slice(0, begin, end), rope);
        std::set<int32_t> expected;
        const int64_t sinks = std::min(num_sinks, num_live - 1);
        for (int64_t t = 0; t < end; ++t) {
          if (t < sinks || t >= end - (num_live - sinks)) expected.insert(static_cast<int32_t>(t));
        }
        for (int64_t layer = 0; layer < a.num_layers; ++layer) {
          const auto& positions = std::as_const(cache).head(layer, 1).positions();
          ASSERT_EQ(std::set<int32_t>(positions.begin(), positions.end()), expected);
        }
      }
    }
  }
  EXPECT_THROW(sinks_and_window_policy(1, 0, 0), c10::Error);
}

TEST(HardStudent, EqualsTheDenseModelWithItsDecisionsReplayed) {
  const TinySource source;
  const Architecture& a = source.architecture();
  constexpr int64_t kTokens = 90;
  EvictionOptions eviction;
  eviction.window = 8;
  for (AdapterKind kind : {AdapterKind::linear, AdapterKind::neuron}) {
    const auto adapter =
        make_adapter(eviction, {kind, 0, AdapterBias::per_head}, *source, {{{0, 1}, {2, 5}}, {{1, 7}, {3, 0}}});
    for (int64_t layer = 0; layer < a.num_layers; ++layer) {
      adapter->set_logit_function(layer, 0.3 * seeded_normal({2, 32}, 30 + static_cast<uint64_t>(layer)).to(at::kFloat),
                                  at::zeros({2}));
    }
    const std::vector<int32_t> tokens = tiny_tokens(kTokens, 5);
    const RopeTables rope = make_rope_tables(a, kTokens, at::TensorOptions().dtype(at::kFloat));
    const at::Tensor embedded_TD = source->embedding().index_select(0, at::tensor(tokens, at::kInt));
    const auto policy = adapter_policy(*adapter, eviction);
    for (int64_t chunk : {1, 7, 90}) {
      SCOPED_TRACE(::testing::Message() << "kind " << static_cast<int>(kind) << " chunk " << chunk);
      CompactCache cache = make_cache(a, *policy, embedded_TD.options());
      std::vector<at::Tensor> outs;
      std::vector<std::vector<at::Tensor>> logits(static_cast<size_t>(a.num_layers));
      for (int64_t begin = 0; begin < kTokens; begin += chunk) {
        std::vector<at::Tensor> chunk_logits;
        outs.push_back(hard_student_chunk(*source, *policy, cache,
                                          embedded_TD.slice(0, begin, std::min(begin + chunk, kTokens)), rope,
                                          &chunk_logits));
        for (size_t layer = 0; layer < logits.size(); ++layer) logits[layer].push_back(chunk_logits[layer]);
      }
      int64_t num_evicted = 0;
      const at::Tensor expected_TV = dense_log_probabilities_TV(
          *source, tokens, {0, kTokens}, eviction.window,
          [&](int64_t layer, const at::Tensor& x_TD, const at::Tensor& normed_TD) {
            const at::Tensor replayed_GT = at::cat(logits[static_cast<size_t>(layer)], 1);
            const at::Tensor logit_GT = dense_eviction_logit_GT(*adapter, eviction, dense_parameters(*adapter),
                                                                a.rms_norm_eps, layer, x_TD, normed_TD);
            EXPECT_TRUE(is_near(replayed_GT, logit_GT, 2e-5));
            const at::Tensor gone_GT = dense_decisions_GT(replayed_GT.to(at::kDouble), 1, {0, kTokens}) > 0;
            num_evicted += gone_GT.sum().item<int64_t>();
            return DenseEviction{at::zeros({2, kTokens}, at::kDouble).masked_fill(gone_GT, kGoneBias),
                                 dense_kept_queries_Hdd(*adapter, a, layer)};
          });
      EXPECT_GT(num_evicted, kTokens);
      EXPECT_LT(num_evicted, 3 * kTokens);
      const at::Tensor logits_TV =
          at::matmul(rms_norm(at::cat(outs), source->final_norm(), a.rms_norm_eps), source->head().t());
      EXPECT_TRUE(is_near(at::log_softmax(logits_TV, -1), expected_TV, 1e-5));
    }
  }
}

}  // namespace
}  // namespace dms
