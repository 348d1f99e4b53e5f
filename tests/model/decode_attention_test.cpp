#include "model/decode_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "model/kv_pool.h"
#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

constexpr float kScale = 0.3F;

// A head's rows as stored, and what attention over them is in float64.
struct Head {
  at::Tensor q, out;
  StoredRows keys, values;
  at::ScalarType stored;
  std::unique_ptr<KvPool> pool;
  std::vector<KvRow> pages;

  Head(int64_t group, int64_t head_dim, int64_t rows, at::ScalarType dtype, uint64_t seed)
      : q(seeded_normal({group, head_dim}, seed).to(at::kFloat)),
        out(at::empty_like(q)),
        // Rows of very different sizes, as real keys are.
        keys(to_stored(seeded_normal({rows, head_dim}, seed + 1) * seeded_normal({rows, 1}, seed + 3), dtype)),
        values(to_stored(seeded_normal({rows, head_dim}, seed + 2) * seeded_normal({rows, 1}, seed + 4), dtype)),
        stored(dtype) {}

  // In pages that follow each other in no order, among those of others.
  DecodeHead view() {
    pool = std::make_unique<KvPool>(q.size(1), at::TensorOptions().dtype(stored), tight_layout(at::kCPU));
    const int64_t num_rows = keys.rows.size(0);
    for (int64_t page = 0; page < pool->num_pages_for(num_rows); ++page) {
      pages.push_back(pool->take());
      pool->take();
    }
    std::reverse(pages.begin(), pages.end());
    for (int64_t row = 0; row < num_rows; ++row) {
      const KvRow& page = pages[static_cast<size_t>(row / kCpuPageRows)];
      pool->write_row({page.slab, page.index + row % kCpuPageRows}, keys, values, row);
    }
    return {q.const_data_ptr<float>(), pages.data(), num_rows, out.data_ptr<float>()};
  }

  at::Tensor expected() const {
    const at::Tensor k = from_stored(keys, at::kDouble), v = from_stored(values, at::kDouble);
    return at::matmul(at::softmax(at::matmul(q.to(at::kDouble), k.t()) * kScale, -1), v);
  }
};

class DecodeAttention : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(DecodeAttention, IsTheDenseSoftmaxForEveryGroupAndNumberOfRows) {
  for (int64_t group : {1, 2, 3, 4, 5, 7, 8}) {
    for (int64_t head_dim : {8, 64, 72, 128}) {
      for (int64_t rows : {1, 2, 3, 4, 63, 64, 65, 1000, 1024, 2051}) {
        SCOPED_TRACE(::testing::Message() << "group " << group << " d " << head_dim << " rows " << rows);
        Head head(group, head_dim, rows, GetParam(), static_cast<uint64_t>(group * 10000 + rows));
        decode_attention({head.view()}, group, head_dim, GetParam(), kScale);
        EXPECT_TRUE(is_near(head.out, head.expected(), 3e-6));
      }
    }
  }
}

TEST_P(DecodeAttention, AHeadsResultDependsOnNothingElseInTheCall) {
  std::vector<Head> together, alone;
  std::vector<DecodeHead> views;
  for (int64_t rows : {5, 3000, 1, 700}) {
    together.emplace_back(3, 64, rows, GetParam(), static_cast<uint64_t>(rows));
    alone.emplace_back(3, 64, rows, GetParam(), static_cast<uint64_t>(rows));
  }
  for (Head& head : together) views.push_back(head.view());
  decode_attention(views, 3, 64, GetParam(), kScale);
  for (size_t i = 0; i < alone.size(); ++i) {
    decode_attention({alone[i].view()}, 3, 64, GetParam(), kScale);
    EXPECT_TRUE(is_bit_equal(together[i].out, alone[i].out)) << i;
    EXPECT_TRUE(is_near(alone[i].out, alone[i].expected(), 3e-6)) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, DecodeAttention,
                         ::testing::Values(at::kFloat, at::kBFloat16, at::kChar, at::kFloat8_e4m3fn),
                         [](const auto& param) { return std::string(at::toString(param.param)); });

// The largest score is subtracted before exp: rows far above and far below the rest, in different parts.
TEST(DecodeAttentionScores, HoldForScoresThatExpCannotHold) {
  for (int64_t low : {0, 1100}) {
    Head head(1, 8, 3 + low, at::kFloat, 1);
    head.q.fill_(10.0);
    head.keys.rows.fill_(-5.0);
    head.keys.rows.slice(0, low, low + 2).fill_(50.0);
    decode_attention({head.view()}, 1, 8, at::kFloat, 1.0F);
    const at::Tensor mean = head.values.rows.slice(0, low, low + 2).to(at::kDouble).mean(0, true);
    EXPECT_TRUE(is_near(head.out, mean, 1e-6));
  }
}

}  // namespace
}  // namespace dms
