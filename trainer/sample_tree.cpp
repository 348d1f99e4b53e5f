#include "trainer/sample_tree.h"

#include <algorithm>
#include <numeric>

#include "trainer/ordered_sum.h"

namespace dms {

SampleTree::SampleTree(std::vector<int64_t> samples_of_rank, int64_t rank)
    : samples_of_rank_(std::move(samples_of_rank)),
      rank_(rank),
      num_samples_(std::accumulate(samples_of_rank_.begin(), samples_of_rank_.end(), int64_t{0})),
      first_sample_(std::accumulate(samples_of_rank_.begin(), samples_of_rank_.begin() + rank, int64_t{0})) {
  for (size_t r = 0; r < samples_of_rank_.size(); ++r) {
    const std::vector<Subtree> subtrees = subtrees_of(static_cast<int64_t>(r));
    all_subtrees_.insert(all_subtrees_.end(), subtrees.begin(), subtrees.end());
  }
}

// From left to right, each as large as its place in the tree and the rank's last sample allow.
std::vector<SampleTree::Subtree> SampleTree::subtrees_of(int64_t rank) const {
  int64_t begin = std::accumulate(samples_of_rank_.begin(), samples_of_rank_.begin() + rank, int64_t{0});
  const int64_t rank_end = begin + samples_of_rank_[static_cast<size_t>(rank)];
  std::vector<Subtree> subtrees;
  while (begin < rank_end) {
    Subtree subtree{begin, begin + 1, 1};
    for (int64_t width = 2; begin % width == 0 && begin + width / 2 < rank_end; width *= 2) {
      const int64_t end = std::min(begin + width, num_samples_);
      if (end > rank_end) break;
      subtree = {begin, end, width};
    }
    subtrees.push_back(subtree);
    begin = subtree.end;
  }
  return subtrees;
}

SampleTree::Sums SampleTree::start_sums(const std::vector<std::vector<double>>& values, RankGroup& ranks,
                                        const std::string& what) const {
  Sums sums;
  sums.samples_of_rank_ = samples_of_rank_;
  sums.num_values_ = std::ssize(values);
  const int64_t most = *std::max_element(samples_of_rank_.begin(), samples_of_rank_.end());
  const at::Tensor mine_VS = at::zeros({sums.num_values_, most}, at::kDouble);
  for (size_t v = 0; v < values.size(); ++v) {
    TORCH_CHECK(std::ssize(values[v]) == samples_of_rank_[static_cast<size_t>(rank_)], "a value of every sample");
    std::copy(values[v].begin(), values[v].end(), mine_VS.data_ptr<double>() + static_cast<int64_t>(v) * most);
  }
  sums.gathering_ = ranks.start_all_gather(mine_VS, what);
  return sums;
}

std::vector<double> SampleTree::Sums::wait() {
  const at::Tensor all_RVS = gathering_.wait();
  std::vector<double> totals;
  for (int64_t v = 0; v < num_values_; ++v) {
    std::vector<double> per_sample;
    for (size_t r = 0; r < samples_of_rank_.size(); ++r) {
      const at::Tensor row_S = all_RVS[static_cast<int64_t>(r)][v];
      const double* values = row_S.const_data_ptr<double>();
      per_sample.insert(per_sample.end(), values, values + samples_of_rank_[r]);
    }
    totals.push_back(tree_sum(std::move(per_sample)));
  }
  return totals;
}

std::vector<at::Tensor> SampleTree::subtree_sums(std::vector<at::Tensor> per_sample) const {
  std::vector<at::Tensor> sums;
  for (const Subtree& subtree : subtrees_of(rank_)) {
    const auto begin = per_sample.begin() + (subtree.begin - first_sample_);
    sums.push_back(tree_sum(std::vector<at::Tensor>(begin, begin + (subtree.end - subtree.begin))));
  }
  return sums;
}

// Sum of the subtree at [begin, begin + width), consuming sums[next], sums[next + 1], ... as it meets theirs.
at::Tensor SampleTree::total(const std::vector<at::Tensor>& sums, int64_t begin, int64_t width, size_t& next) const {
  const Subtree& known = all_subtrees_.at(next);
  const int64_t end = std::min(begin + width, num_samples_);
  if (known.begin == begin && known.end == end) return sums[next++];
  const at::Tensor left = total(sums, begin, width / 2, next);
  if (begin + width / 2 >= num_samples_) return left;
  return left + total(sums, begin + width / 2, width / 2, next);
}

std::vector<at::Tensor> SampleTree::sum_over_ranks(const std::vector<std::vector<at::Tensor>>& sums, RankGroup& ranks,
                                                   const std::string& what) const {
  int64_t width = 1;
  while (width < num_samples_) width *= 2;

  // One message: [ranks, subtrees of the rank with most, values], unused places zero.
  int64_t most_subtrees = 0;
  for (int64_t r = 0; r < ranks.size(); ++r) {
    most_subtrees = std::max(most_subtrees, static_cast<int64_t>(subtrees_of(r).size()));
  }
  std::vector<at::Tensor> rows;
  for (int64_t s = 0; s < most_subtrees; ++s) {
    std::vector<at::Tensor> values;
    for (const std::vector<at::Tensor>& value : sums) {
      const size_t i = static_cast<size_t>(s);
      values.push_back(i < value.size() ? value[i].reshape({-1}) : at::zeros_like(value.front()).reshape({-1}));
    }
    rows.push_back(at::cat(values));
  }
  const at::Tensor all_RSP = ranks.all_gather(at::stack(rows).to(at::kCPU), what);

  std::vector<at::Tensor> totals;
  int64_t offset = 0;
  for (const std::vector<at::Tensor>& value : sums) {
    const int64_t numel = value.front().numel();
    std::vector<at::Tensor> in_order;
    for (int64_t r = 0; r < ranks.size(); ++r) {
      const auto count = static_cast<int64_t>(subtrees_of(r).size());
      for (int64_t s = 0; s < count; ++s) {
        in_order.push_back(all_RSP[r][s].slice(0, offset, offset + numel).view(value.front().sizes()));
      }
    }
    size_t next = 0;
    totals.push_back(total(in_order, 0, width, next).clone().to(value.front().device()));
    offset += numel;
  }
  return totals;
}

}  // namespace dms
