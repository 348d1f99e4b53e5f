#include "trainer/sample_tree.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "trainer/ordered_sum.h"

namespace dms {
namespace {

// Ranks as threads of one process: collectives through shared memory.
class Meeting {
 public:
  explicit Meeting(int64_t size) : parts_(static_cast<size_t>(size)) {}
  std::vector<at::Tensor> exchange(int64_t rank, const at::Tensor& mine) {
    std::unique_lock<std::mutex> lock(mutex_);
    parts_[static_cast<size_t>(rank)] = mine.clone();
    const int64_t round = round_;
    if (++arrived_ == static_cast<int64_t>(parts_.size())) {
      arrived_ = 0;
      complete_ = parts_;
      ++round_;
      all_here_.notify_all();
    }
    all_here_.wait(lock, [&] { return round_ != round; });
    return complete_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  std::vector<at::Tensor> parts_, complete_;
  int64_t arrived_ = 0, round_ = 0;
};

class ThreadRank : public RankGroup {
 public:
  ThreadRank(Meeting& meeting, int64_t rank, int64_t size) : meeting_(meeting), rank_(rank), size_(size) {}
  int64_t rank() const override { return rank_; }
  int64_t size() const override { return size_; }
  std::string host_of(int64_t) const override { return "here"; }
  std::unique_ptr<Pending> start_all_gather(const at::Tensor& out, const at::Tensor& mine,
                                            const std::string&) override {
    const std::vector<at::Tensor> all = meeting_.exchange(rank_, mine.reshape({-1}));
    out.view({-1}).copy_(at::cat(all));
    class Done : public Pending {
      void wait() override {}
    };
    return std::make_unique<Done>();
  }
  void broadcast(at::Tensor& tensor, int64_t from, const std::string&) override {
    tensor.copy_(meeting_.exchange(rank_, tensor)[static_cast<size_t>(from)]);
  }
  std::vector<at::Tensor> gather(const at::Tensor& mine, int64_t to, const std::string&) override {
    std::vector<at::Tensor> all = meeting_.exchange(rank_, mine);
    return rank_ == to ? all : std::vector<at::Tensor>{};
  }
  double waited_seconds() const override { return 0.0; }
  FirstFailure record_failure(int exit_code, bool) override { return {true, exit_code}; }

 private:
  Meeting& meeting_;
  const int64_t rank_, size_;
};

// Runs `body(ranks)` on every rank of a group.
template <class Body>
void on_ranks(int64_t size, const Body& body) {
  Meeting meeting(size);
  std::vector<std::thread> threads;
  for (int64_t r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      ThreadRank rank(meeting, r, size);
      body(rank);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Magnitudes far apart, so that another order of summation shows.
at::Tensor value_of(int64_t sample, int64_t numel) {
  return at::sin(at::arange(numel, at::kFloat) * 1.7 + static_cast<double>(sample)) *
         std::pow(10.0, static_cast<double>(sample % 7));
}

TEST(SampleTree, SumsToTheSameBitsOnAnyNumberOfRanks) {
  for (int64_t num_samples = 1; num_samples <= 17; ++num_samples) {
    std::vector<at::Tensor> all;
    for (int64_t s = 0; s < num_samples; ++s) all.push_back(value_of(s, 5));
    const at::Tensor expected = tree_sum(all), expected_twice = tree_sum(std::vector<at::Tensor>(all)) * 2.0;
    for (int64_t size = 1; size <= std::min<int64_t>(num_samples, 9); ++size) {
      on_ranks(size, [&](RankGroup& ranks) {
        const auto [begin, end] = share_of_rank(num_samples, ranks.rank(), size);
        const SampleTree tree(ranks.all_gather(end - begin, "shares"), ranks.rank());
        EXPECT_EQ(tree.num_samples(), num_samples);
        EXPECT_EQ(tree.first_sample(), begin);
        std::vector<at::Tensor> first, second;
        for (int64_t s = begin; s < end; ++s) {
          first.push_back(value_of(s, 5));
          second.push_back(value_of(s, 5).mul(2.0).view({5, 1}));
        }
        const std::vector<at::Tensor> total =
            tree.sum_over_ranks({tree.subtree_sums(first), tree.subtree_sums(second)}, ranks, "sums");
        EXPECT_TRUE(at::equal(total[0], expected)) << num_samples << " samples, " << size << " ranks";
        EXPECT_TRUE(at::equal(total[1], expected_twice.view({5, 1})));
      });
    }
  }
}

// Two values a sample at once, each as one rank would sum it.
TEST(SampleTree, SumsValuesPerSampleToTheSameBits) {
  for (int64_t num_samples : {1, 2, 5, 6, 13}) {
    std::vector<double> first, second;
    for (int64_t s = 0; s < num_samples; ++s) {
      first.push_back(std::sin(static_cast<double>(s)) * std::pow(10.0, static_cast<double>(s % 7)));
      second.push_back(1.0 / static_cast<double>(s + 3));
    }
    const std::vector<double> expected{tree_sum(first), tree_sum(second)};
    for (int64_t size = 1; size <= std::min<int64_t>(num_samples, 5); ++size) {
      on_ranks(size, [&](RankGroup& ranks) {
        const auto [begin, end] = share_of_rank(num_samples, ranks.rank(), size);
        const SampleTree tree(ranks.all_gather(end - begin, "shares"), ranks.rank());
        const auto mine = [begin = begin, end = end](const std::vector<double>& all) {
          return std::vector<double>(all.begin() + begin, all.begin() + end);
        };
        EXPECT_EQ(tree.start_sums({mine(first), mine(second)}, ranks, "sums").wait(), expected);
      });
    }
  }
}

TEST(SampleTree, ASumInRankOrderWouldHaveOtherBits) {
  std::vector<at::Tensor> all;
  for (int64_t s = 0; s < 6; ++s) all.push_back(value_of(s, 5));
  const at::Tensor halves = (all[0] + all[1] + all[2]) + (all[3] + all[4] + all[5]);
  EXPECT_FALSE(at::equal(halves, tree_sum(all)));
}

TEST(RankGroup, GathersRowsOfUnequalNumberInRankOrder) {
  on_ranks(3, [](RankGroup& ranks) {
    const at::Tensor mine = at::full({2 * ranks.rank(), 2}, ranks.rank(), at::kFloat);  // rank 0 has none
    const at::Tensor expected = at::tensor({1, 1, 2, 2, 2, 2}, at::kFloat).unsqueeze(1).expand({6, 2});
    EXPECT_TRUE(at::equal(ranks.all_gather_rows(mine, "rows"), expected));
    const at::Tensor at_one = ranks.gather_rows(mine, 1, "rows");
    EXPECT_EQ(at_one.defined(), ranks.rank() == 1);
    if (ranks.rank() == 1) {
      EXPECT_TRUE(at::equal(at_one, expected));
    }
  });
}

TEST(RankGroup, BroadcastsTensorsTextAndFlags) {
  on_ranks(3, [](RankGroup& ranks) {
    const at::Tensor known = at::arange(6, at::kLong).view({2, 3});
    EXPECT_TRUE(at::equal(ranks.broadcast_from(ranks.rank() == 2 ? known : at::Tensor(), 2, "a tensor"), known));
    EXPECT_EQ(ranks.broadcast(ranks.rank() == 1 ? "text" : "", 1, "a text"), "text");
    EXPECT_TRUE(ranks.any(ranks.rank() == 2, "a flag"));
    EXPECT_FALSE(ranks.any(false, "a flag"));
  });
}

TEST(RankGroup, SharesAreContiguousAndAsEqualAsCanBe) {
  for (int64_t size = 1; size <= 9; ++size) {
    int64_t next = 0;
    for (int64_t r = 0; r < size; ++r) {
      const auto [begin, end] = share_of_rank(13, r, size);
      EXPECT_EQ(begin, next);
      EXPECT_GE(end - begin, 13 / size);
      EXPECT_LE(end - begin, 13 / size + 1);
      next = end;
    }
    EXPECT_EQ(next, 13);
  }
}

}  // namespace
}  // namespace dms
