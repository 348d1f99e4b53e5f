#include "trainer/compression.h"

#include <algorithm>

namespace dms {

void describe(Schema& schema, CompressionOptions& o) {
  schema.real("initial", o.initial, 1.0, 1e6, "target compression ratio at step 0");
  schema.real("final", o.final, 1.0, 1e6, "target compression ratio from ramp_steps on");
  schema.integer("ramp_steps", o.ramp_steps, 0, int64_t{1} << 31, "steps over which the target rises linearly");
  schema.real("loss_weight", o.loss_weight, 0.0, 1e6, "weight of max(target - fraction, 0)");
  schema.choice<CompressionCount>(
      "count", o.count, {{"soft", CompressionCount::soft}, {"straight_through", CompressionCount::straight_through}},
      "soft: mean alpha over keys with a far query; straight_through: hard decisions over all tokens");
}

double compression_ratio_at(const CompressionOptions& o, int64_t step) {
  if (o.ramp_steps == 0) return o.final;
  const double progress = std::min(static_cast<double>(step) / static_cast<double>(o.ramp_steps), 1.0);
  return o.initial + (o.final - o.initial) * progress;
}

double target_fraction(double compression_ratio) { return 1.0 - 1.0 / compression_ratio; }

CompressionLoss compression_loss(const CompressionOptions& o, double target, double fraction) {
  if (fraction >= target) return {};
  return {o.loss_weight * (target - fraction), -o.loss_weight};
}

}  // namespace dms
