#include "model/sampler.h"

#include <ATen/core/PhiloxRNGEngine.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

namespace dms {

namespace {

// Uniform in [0, 1), 24 bits.
double uniform(uint64_t seed, uint64_t sample, uint64_t position) {
  at::Philox4_32 engine(seed, sample, position);
  return static_cast<double>(engine() >> 8U) * 0x1p-24;
}

}  // namespace

int32_t sample_token(const at::Tensor& logits_V, const SamplingOptions& options, uint64_t sample, uint64_t position) {
  const at::NoGradGuard no_grad;
  const at::Tensor logits = logits_V.to(at::kCPU, at::kFloat);
  if (options.temperature <= 0.0) return at::argmax(logits).item<int32_t>();

  // Likeliest first; equal logits in the order of their ids.
  auto [sorted, ids] = at::sort(logits.to(at::kDouble) / options.temperature, /*stable=*/true, /*dim=*/-1,
                                /*descending=*/true);
  int64_t count = sorted.numel();
  if (options.top_k > 0) count = std::min(count, options.top_k);
  const at::Tensor probability = at::softmax(sorted.slice(0, 0, count), 0);
  const double* p = probability.data_ptr<double>();
  double sum = 1.0;
  if (options.top_p < 1.0) {
    int64_t kept = 0;
    for (sum = 0.0; kept < count && sum < options.top_p; ++kept) sum += p[kept];
    count = std::max<int64_t>(1, kept);
  }
  if (options.min_p > 0.0) {
    while (count > 1 && p[count - 1] < options.min_p * p[0]) --count;
  }
  sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += p[i];
  double remaining = uniform(options.seed, sample, position) * sum;
  for (int64_t i = 0; i < count; ++i) {
    remaining -= p[i];
    if (remaining < 0.0) return ids[i].item<int32_t>();
  }
  return ids[count - 1].item<int32_t>();
}

}  // namespace dms
