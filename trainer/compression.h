// How far to compress at each step, and the auxiliary loss that pushes there.
//   CR(t) = initial + (final - initial) * min(t / ramp_steps, 1),   target(t) = 1 - 1 / CR(t)
//   loss  = loss_weight * max(target - fraction, 0)
// `fraction` is counted over the global batch:
//   soft              mean of alpha over keys that have at least one far query (the others would feel only this term)
//   straight_through  share of relaxed decisions above 1/2 over all tokens, unshifted, gradients through alpha: what
//                     NVIDIA's trainer does
#pragma once

#include <cstdint>

#include "recipes/schema.h"

namespace dms {

enum class CompressionCount { soft, straight_through };

struct CompressionOptions {
  double initial = 1.0;
  double final = 8.0;
  int64_t ramp_steps = 238;
  double loss_weight = 1.0;
  CompressionCount count = CompressionCount::soft;
};
void describe(Schema& schema, CompressionOptions& options);

double compression_ratio_at(const CompressionOptions& options, int64_t step);
double target_fraction(double compression_ratio);  // 1 - 1/CR

struct CompressionLoss {
  double loss = 0.0;
  double gradient = 0.0;  // with respect to `fraction`: -loss_weight while below the target, else 0
};
CompressionLoss compression_loss(const CompressionOptions& options, double target, double fraction);

}  // namespace dms
