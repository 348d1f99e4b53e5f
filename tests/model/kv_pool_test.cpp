#include "model/kv_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <utility>

#include "model/parallel_tasks.h"
#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

constexpr int64_t kRowDim = 8;

at::TensorOptions stored_as(at::ScalarType dtype) { return at::TensorOptions().dtype(dtype); }
KvPoolLayout tight() { return tight_layout(at::kCPU); }

TEST(KvPool, GivesEveryPageToOneTaker) {
  KvPool pool(kRowDim, stored_as(at::kFloat), tight());
  constexpr int64_t kTakers = 8, kPages = 200;
  std::vector<std::vector<KvRow>> taken(kTakers);
  run_tasks(kTakers, [&](int64_t taker) {
    auto& mine = taken[static_cast<size_t>(taker)];
    for (int64_t i = 0; i < kPages; ++i) {
      mine.push_back(pool.take());
      if (i % 3 == 0) {
        pool.give_back(mine.back());
        mine.pop_back();
      }
    }
  });
  std::set<std::pair<const KvSlab*, int64_t>> pages;
  int64_t count = 0;
  for (const auto& mine : taken) {
    for (const KvRow& page : mine) pages.emplace(page.slab, page.index);
    count += std::ssize(mine);
  }
  EXPECT_EQ(std::ssize(pages), count);
  EXPECT_EQ(pool.num_taken(), count);
  for (const auto& [slab, index] : pages) {
    EXPECT_EQ(index % (2 * pool.page_rows()), 0);
    EXPECT_LE(index + 2 * pool.page_rows(), KvPool::rows_of(*slab).size(0));
  }
}

TEST(KvPool, HoldsLittleMoreThanItWasAskedForAndReusesWhatComesBack) {
  KvPool pool(kRowDim, stored_as(at::kFloat), tight());
  std::vector<KvRow> pages;
  for (int64_t i = 0; i < 1000; ++i) {
    pages.push_back(pool.take());
    ASSERT_LE(pool.allocated_bytes(), (i + 1) * pool.page_bytes() * 129 / 128);
  }
  const int64_t before = pool.allocated_bytes();
  for (const KvRow& page : pages) pool.give_back(page);
  EXPECT_EQ(pool.num_taken(), 0);
  for (int64_t i = 0; i < 1000; ++i) pool.take();
  EXPECT_EQ(pool.allocated_bytes(), before);
}

TEST(KvPool, GrowsUpToItsBudgetAndBeyondOnlyByWhatIsAskedFor) {
  const int64_t page_bytes = KvPool(kRowDim, stored_as(at::kFloat), tight()).page_bytes();
  constexpr int64_t kBudgetPages = 100;
  const KvPoolLayout in_big_steps{kCpuPageRows, 64 * page_bytes, 4, true};
  KvPool pool(kRowDim, stored_as(at::kFloat), in_big_steps, kBudgetPages * page_bytes + 1);
  EXPECT_EQ(pool.num_within_budget(), kBudgetPages);
  for (int64_t taken = 1; taken <= 103; ++taken) {
    pool.take();
    const int64_t expected = taken <= 64 ? 64 : std::max(taken, kBudgetPages);
    ASSERT_EQ(pool.allocated_bytes(), expected * page_bytes) << taken;
    ASSERT_EQ(pool.num_within_budget(), kBudgetPages - taken);
  }
}

TEST(KvPool, CountsWhatARowTakesInEveryFormat) {
  for (const auto& [dtype, row_bytes] : {std::pair{at::kDouble, 64},
                                         {at::kFloat, 32},
                                         {at::kBFloat16, 16},
                                         {at::kChar, 8 + 4},
                                         {at::kFloat8_e4m3fn, 12}}) {
    const KvPool pool(kRowDim, stored_as(dtype), tight());
    EXPECT_EQ(pool.stored_bytes(3), 3 * 2 * row_bytes);
    const auto page_table = static_cast<int64_t>(sizeof(KvRow));
    EXPECT_EQ(pool.page_bytes(), kCpuPageRows * (2 * row_bytes + 4 + 4) + page_table) << at::toString(dtype);
  }
}

// Rows come back as they were written, from several slabs and in any order, whoever copies them.
TEST(KvPool, ReadsBackWhatWasWritten) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kChar, at::kFloat8_e4m3fn}) {
    for (const bool host_copies : {true, false}) {
      SCOPED_TRACE(::testing::Message() << at::toString(dtype) << (host_copies ? " host" : " device"));
      KvPool pool(kRowDim, stored_as(dtype), {4, 0, 2, host_copies});
      std::vector<KvRow> places;
      for (int64_t page = 0; page < 9; ++page) {
        const KvRow first = pool.take();
        for (int64_t row = 0; row < 4; ++row) places.push_back({first.slab, first.index + row});
      }
      ASSERT_GT(std::set<const KvSlab*>({places.front().slab, places[16].slab, places.back().slab}).size(), 1U);
      std::swap(places[1], places[30]);
      std::swap(places[7], places[11]);
      const StoredRows keys = to_stored(seeded_normal({36, kRowDim}, 1), dtype);
      const StoredRows values = to_stored(seeded_normal({36, kRowDim}, 2) * 100.0, dtype);
      pool.write(places, keys, values);
      const auto same = [](const StoredRows& a, const StoredRows& b) {
        return is_bit_equal(bytes_of(a.rows), bytes_of(b.rows)) &&
               (!b.scales.defined() || is_bit_equal(a.scales, b.scales));
      };
      EXPECT_TRUE(same(pool.read_keys(places), keys));
      EXPECT_TRUE(same(pool.read_values(places), values));

      // Some of them anew.
      const std::vector<KvRow> some{places[30], places[2], places[17]};
      const at::Tensor index = at::tensor({5, 6, 7}, at::kLong);
      pool.write(some, select_rows(values, index), select_rows(keys, index));
      EXPECT_TRUE(same(pool.read_keys(some), select_rows(values, index)));
      EXPECT_TRUE(same(pool.read_values(some), select_rows(keys, index)));
      EXPECT_TRUE(same(pool.read_keys({places[3], places[16]}), select_rows(keys, at::tensor({3, 16}, at::kLong))));
      EXPECT_EQ(pool.read_keys({}).rows.size(0), 0);
    }
  }
}

}  // namespace
}  // namespace dms
