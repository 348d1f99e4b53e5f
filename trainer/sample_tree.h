// The binary tree over the global batch by which per-sample values are summed (trainer/ordered_sum.h), cut at rank
// boundaries: each rank sums the largest whole subtrees of its contiguous samples, the subtrees' sums travel, and every
// rank finishes the same tree.  So the total has the same bits on any number of ranks, whatever their shares; shares
// that are a power of two are one subtree each.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "trainer/ranks.h"

namespace dms {

class SampleTree {
 public:
  // samples_of_rank[r]: how many samples rank r holds; rank 0 holds the first.
  SampleTree(std::vector<int64_t> samples_of_rank, int64_t rank);

  int64_t num_samples() const { return num_samples_; }
  int64_t first_sample() const { return first_sample_; }  // of this rank, in the global batch

  // Values of all samples on their way to every rank.
  class Sums {
   public:
    std::vector<double> wait();  // each value summed over the global batch

   private:
    friend class SampleTree;
    std::vector<int64_t> samples_of_rank_;
    int64_t num_values_ = 0;
    RankGroup::Gathering gathering_;
  };
  // values[v][i]: value v of this rank's sample i.
  Sums start_sums(const std::vector<std::vector<double>>& values, RankGroup& ranks, const std::string& what) const;

  // Sums of this rank's subtrees.
  std::vector<at::Tensor> subtree_sums(std::vector<at::Tensor> per_sample) const;

  // sums[p]: what subtree_sums() gave for value p.  Returns value p summed over the global batch, on every rank.
  std::vector<at::Tensor> sum_over_ranks(const std::vector<std::vector<at::Tensor>>& sums, RankGroup& ranks,
                                         const std::string& what) const;

 private:
  struct Subtree {
    int64_t begin = 0, end = 0, width = 1;  // width: 2^level; end - begin is smaller at the right edge of the tree
  };
  std::vector<Subtree> subtrees_of(int64_t rank) const;
  at::Tensor total(const std::vector<at::Tensor>& sums, int64_t begin, int64_t width, size_t& next) const;

  std::vector<int64_t> samples_of_rank_;
  int64_t rank_ = 0, num_samples_ = 0, first_sample_ = 0;
  std::vector<Subtree> all_subtrees_;  // of all ranks, left to right
};

}  // namespace dms
