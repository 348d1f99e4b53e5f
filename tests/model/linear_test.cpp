#include "model/linear.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

TEST(FewRowsLinear, IsTheProductForEveryNumberOfRows) {
  for (int64_t rows : {1, 2, 3, 4, 5, 16, 31, 32, 33}) {
    for (const auto& [inner, columns] : {std::pair<int64_t, int64_t>{8, 1}, {64, 35}, {576, 196}}) {
      SCOPED_TRACE(::testing::Message() << rows << " x " << inner << " x " << columns);
      const at::Tensor x = seeded_normal({rows, inner}, 1).to(at::kFloat);
      const at::Tensor weight = seeded_normal({columns, inner}, 2).to(at::kFloat);
      const at::Tensor bias = seeded_normal({columns}, 3).to(at::kFloat);
      const at::Tensor product = at::matmul(x.to(at::kDouble), weight.to(at::kDouble).t());
      EXPECT_TRUE(is_near(few_rows_linear(x, weight, {}), product, 1e-6));
      EXPECT_TRUE(is_near(few_rows_linear(x, weight, bias), product + bias.to(at::kDouble), 1e-6));
    }
  }
}

TEST(FewRowsLinear, ARowDoesNotDependOnTheOthers) {
  const at::Tensor x = seeded_normal({32, 72}, 1).to(at::kFloat), weight = seeded_normal({50, 72}, 2).to(at::kFloat);
  const at::Tensor all = few_rows_linear(x, weight, {});
  for (int64_t first = 0; first < 32; first += 5) {
    for (int64_t count : {1, 2, 3}) {
      if (first + count > 32) continue;
      EXPECT_TRUE(is_bit_equal(few_rows_linear(x.slice(0, first, first + count), weight, {}),
                               all.slice(0, first, first + count)));
    }
  }
}

TEST(FewRowsWeightedSum, IsTheProductForEveryNumberOfRowsAndThreads) {
  const int threads = at::get_num_threads();
  for (int64_t rows : {1, 2, 3, 4, 8, 33}) {
    for (const auto& [summands, columns] : {std::pair<int64_t, int64_t>{1, 8}, {6, 7}, {5, 40}, {5003, 72}}) {
      SCOPED_TRACE(::testing::Message() << rows << " x " << summands << " x " << columns);
      const at::Tensor weight = seeded_normal({rows, summands}, 1).to(at::kFloat);
      const at::Tensor x = seeded_normal({summands, columns}, 2).to(at::kFloat);
      at::set_num_threads(1);
      const at::Tensor one = few_rows_weighted_sum(weight, x);
      at::set_num_threads(2);
      const at::Tensor two = few_rows_weighted_sum(weight, x);
      at::set_num_threads(threads);
      EXPECT_TRUE(is_near(one, at::matmul(weight.to(at::kDouble), x.to(at::kDouble)), 2e-6));
      if (rows <= kFewRows && columns % 8 == 0) {
        EXPECT_TRUE(is_bit_equal(two, one));
      }
    }
  }
}

TEST(FewRowsLinear, LeavesWhatItCannotDoToTheLibrary) {
  // Rows of 7 elements, a transposed weight, another dtype.
  const at::Tensor x = seeded_normal({3, 16}, 1), weight = seeded_normal({16, 10}, 2);
  EXPECT_TRUE(is_near(few_rows_linear(x.to(at::kFloat), weight.to(at::kFloat).t(), {}), at::matmul(x, weight), 1e-6));
  EXPECT_TRUE(is_near(few_rows_linear(x, weight.t(), {}), at::matmul(x, weight), 1e-14));
  const at::Tensor x7 = x.slice(1, 0, 7), weight7 = weight.slice(0, 0, 7);
  EXPECT_TRUE(is_near(few_rows_linear(x7.to(at::kFloat), weight7.to(at::kFloat).t().contiguous(), {}),
                      at::matmul(x7, weight7), 1e-6));
  // Strided rows are made contiguous first.
  EXPECT_TRUE(is_near(
      few_rows_linear(x.to(at::kFloat).slice(1, 0, 8), weight.slice(0, 0, 8).to(at::kFloat).t().contiguous(), {}),
      at::matmul(x.slice(1, 0, 8), weight.slice(0, 0, 8)), 1e-6));
}

}  // namespace
}  // namespace dms
