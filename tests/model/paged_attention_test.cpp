#include "model/paged_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <set>
#include <tuple>
#include <vector>

#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

constexpr int64_t kDim = 16, kQueryHeads = 3;
constexpr double kScoreScale = 0.3;

// Heads with so many rows each, whose pages lie among each other's in several slabs.
struct Heads {
  Heads(const std::vector<int64_t>& rows, at::TensorOptions options)
      : pool(kDim, options, {8, 0, 2, options.device().is_cpu()}) {
    for (size_t h = 0; h < rows.size(); ++h) caches.emplace_back(pool);
    uint64_t seed = 0;
    for (int64_t first = 0; first < *std::max_element(rows.begin(), rows.end()); first += 5) {
      for (size_t h = 0; h < rows.size(); ++h) {
        const int64_t count = std::min<int64_t>(5, rows[h] - first);
        if (count <= 0) continue;
        const auto random_rows = [&] {
          return to_stored(seeded_normal({count, kDim}, ++seed).to(options.device(), at::kFloat), pool.stored_dtype());
        };
        const StoredRows keys = random_rows(), values = random_rows();
        caches[h].append(keys, values, std::vector<int32_t>(static_cast<size_t>(count), 0),
                         std::vector<float>(static_cast<size_t>(count), -1.0F));
      }
    }
  }

  std::vector<const HeadCache*> pointers() const {
    std::vector<const HeadCache*> all;
    for (const HeadCache& cache : caches) all.push_back(&cache);
    return all;
  }

  at::Tensor expected(const at::Tensor& q_NRd) const {
    std::vector<at::Tensor> outs;
    for (size_t h = 0; h < caches.size(); ++h) {
      const at::Tensor q = q_NRd[static_cast<int64_t>(h)].to(at::kDouble);
      const at::Tensor weight = at::softmax(at::matmul(q, caches[h].keys(at::kDouble).t()) * kScoreScale, -1);
      outs.push_back(at::matmul(weight, caches[h].values(at::kDouble)));
    }
    return at::stack(outs);
  }

  KvPool pool;
  std::vector<HeadCache> caches;
};

const std::vector<int64_t> kHeadRows{1, 8, 70, 9, 23, 64};

at::Tensor queries(const at::TensorOptions& options) {
  return seeded_normal({static_cast<int64_t>(kHeadRows.size()), kQueryHeads, kDim}, 99).to(options) * 3.0;
}

TEST(PagedAttention, IsTheDenseSoftmaxWhereverThePagesLie) {
  for (const auto& [stored, computed, tolerance] : {std::tuple{at::kDouble, at::kDouble, 1e-12},
                                                    {at::kFloat, at::kFloat, 3e-6},
                                                    {at::kBFloat16, at::kFloat, 3e-6},
                                                    {at::kChar, at::kFloat, 3e-6},
                                                    {at::kFloat8_e4m3fn, at::kDouble, 1e-12}}) {
    SCOPED_TRACE(::testing::Message() << at::toString(stored) << " " << at::toString(computed));
    const Heads heads(kHeadRows, at::TensorOptions().dtype(stored));
    const at::Tensor q = queries(at::TensorOptions().dtype(computed));
    const at::Tensor out = paged_attention(page_kernel(q), heads.pool, heads.pointers(), q, kScoreScale);
    EXPECT_TRUE(is_near(out, heads.expected(q), tolerance));
  }
}

// Scores that exp cannot hold, in one page of several.
TEST(PagedAttention, MergesPagesOfVeryDifferentScores) {
  const Heads heads(kHeadRows, at::TensorOptions().dtype(at::kDouble));
  const at::Tensor q = queries(at::TensorOptions().dtype(at::kDouble)) * 300.0;
  EXPECT_TRUE(
      is_near(paged_attention(page_kernel(q), heads.pool, heads.pointers(), q, kScoreScale), heads.expected(q), 1e-12));
}

// Where the allocator puts slabs depends on all that the process did before.
TEST(PagedAttention, HasTheSameBitsInWhateverOrderSlabsLie) {
  const at::Tensor q = queries(at::TensorOptions().dtype(at::kFloat));
  std::set<std::vector<int64_t>> orders;
  at::Tensor first_out;
  for (int trial = 0; trial < 8; ++trial) {
    std::vector<std::unique_ptr<char[]>> holes;
    for (size_t i = 0; i < 400; ++i) holes.push_back(std::make_unique<char[]>(16 + 16 * (i % 8)));
    for (size_t i = static_cast<size_t>(trial); i < holes.size(); i += 3) holes[i].reset();
    const Heads heads(kHeadRows, at::TensorOptions().dtype(at::kFloat));
    std::vector<const KvSlab*> slabs;  // of the longest head, as its rows go on
    for (const KvRow& page : heads.caches[2].pages()) slabs.push_back(page.slab);
    const std::set<const KvSlab*> by_address(slabs.begin(), slabs.end());
    std::vector<int64_t> order;
    for (const KvSlab* slab : slabs) order.push_back(std::distance(by_address.begin(), by_address.find(slab)));
    orders.insert(order);
    const at::Tensor out = paged_attention(page_kernel(q), heads.pool, heads.pointers(), q, kScoreScale);
    if (trial == 0) first_out = out;
    EXPECT_TRUE(at::equal(out, first_out)) << trial;
  }
  EXPECT_GT(orders.size(), 1U) << "the allocator put all slabs in one order";
}

// What a device's kernel is asked for: one call a slab, spans inside it, every live row once.
TEST(PagedAttention, AsksForAllPagesOfASlabAtOnce) {
  class Recorder final : public PageKernel {
   public:
    PageOutput attend(const at::Tensor& q_SRd, const PageSpans& spans, double scale) const override {
      ++calls;
      EXPECT_EQ(q_SRd.size(0), std::ssize(spans.first_rows));
      for (size_t i = 0; i < spans.first_rows.size(); ++i) {
        EXPECT_LE(spans.first_rows[i] + spans.num_rows[i], spans.keys_Md.size(0));
        EXPECT_EQ(spans.keys_Md.sizes(), spans.values_Md.sizes());
        EXPECT_GE(spans.num_rows[i], 1);
        rows += spans.num_rows[i];
      }
      return page_kernel(q_SRd).attend(q_SRd, spans, scale);
    }
    mutable int64_t calls = 0, rows = 0;
  };
  const Heads heads(kHeadRows, at::TensorOptions().dtype(at::kFloat));
  const at::Tensor q = queries(at::TensorOptions().dtype(at::kFloat));
  std::set<const KvSlab*> slabs;
  for (const HeadCache& cache : heads.caches) {
    for (const KvRow& page : cache.pages()) slabs.insert(page.slab);
  }
  ASSERT_GT(slabs.size(), 2U);
  const Recorder recorder;
  paged_attention(recorder, heads.pool, heads.pointers(), q, kScoreScale);
  EXPECT_EQ(recorder.calls, std::ssize(slabs));
  EXPECT_EQ(recorder.rows, 1 + 8 + 70 + 9 + 23 + 64);
}

TEST(PagedAttention, OnAGpuIsFlashAttention) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU";
  for (const at::ScalarType stored : {at::kBFloat16, at::kChar}) {
    const auto options = at::TensorOptions().device(at::kCUDA);
    const Heads heads(kHeadRows, options.dtype(stored));
    const at::Tensor q = queries(options.dtype(at::kBFloat16));
    EXPECT_TRUE(is_near(paged_attention(page_kernel(q), heads.pool, heads.pointers(), q, kScoreScale).cpu(),
                        heads.expected(q).cpu(), 0.02));
  }
}

}  // namespace
}  // namespace dms
