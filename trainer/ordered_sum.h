// Sums whose bits do not depend on threads, ranks or batching: float64, in index order, and over samples by a binary
// tree on the global sample index.  at::sum() splits work by the number of threads and must not be used where a run's
// losses have to be reproducible.
#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace dms {

// Sum of all elements in storage order, accumulated in float64.
double ordered_sum(const at::Tensor& values);
double ordered_sum_of_squares(const at::Tensor& values);

// Combines per-sample values pairwise: ((0+1)+(2+3))+...; a power-of-two block of samples is a subtree, so partial sums
// of contiguous blocks combine to the same bits.
at::Tensor tree_sum(std::vector<at::Tensor> per_sample);
double tree_sum(std::vector<double> per_sample);

}  // namespace dms
