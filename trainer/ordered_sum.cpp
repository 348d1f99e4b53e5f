#include "trainer/ordered_sum.h"

namespace dms {

namespace {

template <class Combine>
double accumulate(const at::Tensor& values, const Combine& combine) {
  const at::Tensor flat = values.detach().to(at::kCPU, at::kDouble).contiguous();
  const double* data = flat.data_ptr<double>();
  double sum = 0.0;
  for (int64_t i = 0; i < flat.numel(); ++i) sum += combine(data[i]);
  return sum;
}

template <class T>
T combine_pairwise(std::vector<T> level) {
  TORCH_CHECK(!level.empty(), "nothing to sum");
  while (level.size() > 1) {
    std::vector<T> next;
    for (size_t i = 0; i < level.size(); i += 2) {
      next.push_back(i + 1 < level.size() ? level[i] + level[i + 1] : level[i]);
    }
    level = std::move(next);
  }
  return level.front();
}

}  // namespace

double ordered_sum(const at::Tensor& values) {
  return accumulate(values, [](double x) { return x; });
}

double ordered_sum_of_squares(const at::Tensor& values) {
  return accumulate(values, [](double x) { return x * x; });
}

at::Tensor tree_sum(std::vector<at::Tensor> per_sample) { return combine_pairwise(std::move(per_sample)); }
double tree_sum(std::vector<double> per_sample) { return combine_pairwise(std::move(per_sample)); }

}  // namespace dms
