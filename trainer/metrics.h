// What a training run records of each step, and where: RUN/metrics.jsonl (one JSON object a line, the fields below by
// name, in this order) and RUN/tensorboard/.  Everything that reads a run afterwards reads the former.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/append_file.h"
#include "trainer/tensorboard.h"

namespace dms {

struct StepMetrics {
  int64_t step = 0;
  double loss = 0;  // kl + compression_loss, what the step minimised
  double kl = 0;    // nats a token, under the relaxed eviction of training
  double compression_loss = 0;
  double target_cr = 1;
  double eviction_rate = 0;  // share of positive decisions, noiseless
  double alpha_mean = 0;     // the soft mean that the compression loss sees
  double grad_norm = 0;      // before clipping
  double lr = 0;
  double tokens_per_s = 0;
  double mfu = 0;
  int64_t peak_memory_bytes = 0;
  double seconds = 0;  // wall time of this step
  // Per rank, in rank order: where its step's time went.
  std::vector<double> rank_seconds = {};
  std::vector<double> rank_data_seconds = {};           // reading samples
  std::vector<double> rank_communication_seconds = {};  // waiting for other ranks
  std::vector<double> rank_compute_seconds = {};        // the rest
};

// The rank whose compute took more than kStragglerShare longer than the median rank's; -1 when there is none.
inline constexpr double kStragglerShare = 0.2;
int64_t straggler_of(const StepMetrics& metrics);

class MetricsLog {
 public:
  // Continues the log of `run_dir` (which must exist) at `resume_step`: lines with step >= resume_step are dropped,
  // atomically, and TensorBoard is told to drop the same points; 0 starts afresh.  A torn last line, left by a killed
  // writer, is dropped as well.  Throws UserError when any other line is not a record of a step, IoError otherwise.
  MetricsLog(const std::string& run_dir, int64_t resume_step);

  // Both files hold the step before this returns.  Numbers that are not finite become null in metrics.jsonl.
  // Throws IoError.
  void append(const StepMetrics& metrics);

 private:
  AppendFile lines_;
  TensorBoardWriter tensorboard_;
};

// What `run_dir` has recorded so far, in order; null numbers read as NaN, a torn last line is ignored, a missing file is
// an empty log.  Throws UserError when a line is not a record with all the fields above.
std::vector<StepMetrics> read_metrics(const std::string& run_dir);

}  // namespace dms
