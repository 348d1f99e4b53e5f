#include "trainer/target_ratio.h"

#include <cstdio>

#include "data/sample_order.h"
#include "recipes/user_error.h"
#include "trainer/model_tokens.h"
#include "trainer/progress_line.h"
#include "trainer/threshold.h"

namespace dms {

namespace {

std::string times(double ratio) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2fx", ratio);
  return text;
}

}  // namespace

void move_threshold(const TargetRatio& target, const std::string& flag, int64_t default_length,
                    const std::string& model_dir, WeightSource& source, TrainedAdapter& trained) {
  if (!target.given()) return;
  if (trained.adapter == nullptr) throw UserError(flag, "moves an evictor's threshold", {"give --adapters"});
  const int64_t length = target.sequence_length > 0 ? target.sequence_length : default_length;
  const int64_t window = trained.eviction.window;
  const double share = length > window + 1 ? keep_share(target.ratio, length, window) : 0.0;
  if (share <= 0.0) {
    throw UserError(flag, times(target.ratio) + " is out of reach at " + std::to_string(length) + " tokens",
                    {"the window of " + std::to_string(window) + " alone allows " +
                     times(static_cast<double>(length) / static_cast<double>(window + 1))});
  }
  std::vector<Sample> windows;
  for (const auto& file : open_token_files(target.data, model_dir, source.architecture())) {
    for (Sample& sample : SampleOrder::evaluation_windows(*file, length, target.max_tokens)) {
      windows.push_back(std::move(sample));
    }
  }
  if (target.per_head) give_bias_per_head(trained, source);
  ThresholdResult fitted;
  {
    ProgressLine progress;
    fitted = fit_threshold(source, *trained.adapter, trained.eviction, share,
                           target.per_head ? OffsetPer::kv_head : OffsetPer::model, windows,
                           [&](int64_t done, int64_t total) { progress.update("moving the threshold", done, total); });
  }
  take_over_changes(trained);
  std::fprintf(stderr,
               "threshold moved by %+.3f%s: keeps %.1f%% of the keys beyond the window, %.2fx fewer at %ld tokens\n",
               fitted.offset_change, target.per_head ? " on average" : "", 100.0 * fitted.keep_share.back(),
               target.ratio, length);
}

}  // namespace dms
