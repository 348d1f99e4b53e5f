// dms eval-tasks: asks what has not been answered yet, grades it, and notes each answer as it comes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "data/benchmark.h"
#include "data/chat_template.h"
#include "data/needles.h"
#include "trainer/target_ratio.h"
#include "trainer/task_results.h"

namespace dms {

struct TaskRun {
  std::string model, adapters;  // no adapters: nothing is evicted
  TargetRatio target;
  int64_t streaming_keys = 0;  // > 0: sinks + window with as many keys a head, instead of adapters
  std::string task, data, out;
  std::string needle_text;  // file
  NeedleOptions needles;
  int64_t samples = 1, max_batch = 16;
  int64_t limit = 0;                        // only so many problems; 0 = all
  int64_t max_new_tokens = 0;               // 0 = what the task is usually given
  double temperature = -1.0, top_p = -1.0;  // negative: the model's
  int64_t top_k = -1;
  uint64_t seed = 0;
  std::optional<bool> chat;  // unset: when the model has a template
  ChatOptions chat_options;
  std::string dtype = "auto", kv_dtype = "auto", device = "auto";
  int64_t kv_budget_bytes = -1;  // negative: unlimited
};

// All answers that `run.out` holds in the end.  Throws UserError, and Interrupted when a signal ended it early.
TaskResults run_task(const TaskRun& run);

}  // namespace dms
