#include "model/decode_attention.h"

#include <gtest/gtest.h>

#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

TEST(DecodeAttention, IsTheDenseSoftmaxForEveryGroupAndNumberOfRows) {
  for (const at::ScalarType stored : {at::kFloat, at::kBFloat16}) {
    for (int64_t group : {1, 3, 4, 5, 7}) {
      for (int64_t head_dim : {8, 64, 128}) {
        for (int64_t rows : {1, 2, 31, 32, 33, 1000}) {
          SCOPED_TRACE(::testing::Message()
                       << at::toString(stored) << " group " << group << " d " << head_dim << " rows " << rows);
          const auto seed = static_cast<uint64_t>(group * 1000 + rows);
          const at::Tensor q = seeded_normal({group, head_dim}, seed).to(at::kFloat);
          const at::Tensor k = seeded_normal({rows, head_dim}, seed + 1).to(stored);
          const at::Tensor v = seeded_normal({rows, head_dim}, seed + 2).to(stored);
          const at::Tensor out = at::empty_like(q);
          decode_attention(q.data_ptr<float>(), group, head_dim, k.data_ptr(), v.data_ptr(), rows, stored, 0.3F,
                           out.data_ptr<float>());
          const at::Tensor expected = at::matmul(
              at::softmax(at::matmul(q.to(at::kDouble), k.to(at::kDouble).t()) * 0.3, -1), v.to(at::kDouble));
          EXPECT_TRUE(is_near(out, expected, 2e-6));
        }
      }
    }
  }
}

// The largest score is subtracted before exp: rows far above and far below the rest.
TEST(DecodeAttention, HoldsForScoresThatExpCannotHold) {
  const at::Tensor q = at::full({1, 8}, 10.0, at::kFloat), v = at::eye(3, 8, at::kFloat);
  const at::Tensor k = at::cat({at::full({1, 8}, 5.0), at::full({1, 8}, 5.0), at::full({1, 8}, -5.0)}).to(at::kFloat);
  const at::Tensor out = at::empty_like(q);
  decode_attention(q.data_ptr<float>(), 1, 8, k.data_ptr(), v.data_ptr(), 3, at::kFloat, 1.0F, out.data_ptr<float>());
  EXPECT_TRUE(is_near(out, at::tensor({0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0}, at::kDouble).unsqueeze(0), 1e-6));
}

}  // namespace
}  // namespace dms
