// What a trained evictor costs and saves, measured under hard eviction with a really compact cache.
//
// KL is KL(teacher || student) in nats per token against the uncompressed model.  Baselines run through the same cache
// at the same live KV: n = ceil(mean live keys over layers, heads and sequences), the current token included; the
// sliding window keeps the last n, streaming the first 4 and the last n - 4.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/sample_order.h"
#include "model/adapter.h"
#include "model/weights.h"

namespace dms {

// Raw measurements of one method over some windows; records of several sets concatenate.
struct MethodRecord {
  std::vector<float> kl;  // [windows * T], position-minor
  double same_top1 = 0.0;
  double nll_sum = 0.0;
  int64_t nll_count = 0;
  int64_t dense_bytes = 0, allocated_bytes = 0, live_bytes = 0;  // at the ends of the sequences
  int64_t dense_keys_read = 0, keys_read = 0;
  int64_t live_keys = 0;  // at the ends, summed over layers, heads and sequences

  void append(const MethodRecord& other);
};

struct EvaluationRecord {
  int64_t sequence_length = 0, window = 0, num_windows = 0;
  MethodRecord student, sliding_window, streaming_llm;
  std::vector<int32_t> last_use;  // of each position of a method's kl: trainer/last_use.h
  double teacher_nll_sum = 0.0;
  std::vector<std::vector<double>> kept, counted;  // [L][G] over keys that have a far query
  struct MemoryAtLength {
    int64_t tokens = 0, num_sequences = 0;
    double dense_bytes = 0.0, allocated_bytes = 0.0;  // summed over sequences
  };
  std::vector<MemoryAtLength> memory_by_length;  // of windows that are one document
  double noise_floor_kl_sum = 0.0;               // over one window
  int64_t noise_floor_tokens = 0;
  int64_t baseline_live_keys = 0;  // n above; 0 without baselines

  // The first window's tokens and how many (layer, KV head) pairs keep each.
  std::vector<int32_t> sample_tokens;
  std::vector<int64_t> sample_kept_heads;

  void append(const EvaluationRecord& other);
};

struct EvaluationOptions {
  EvictionOptions eviction;
  bool attend_across_documents = true;
  bool with_baselines = true;
};

// All windows have one length.  `progress(done, total)` counts windows, each method's pass as one.
EvaluationRecord evaluate(WeightSource& source, const Adapter& adapter, const EvaluationOptions& options,
                          const std::vector<Sample>& windows, const std::function<void(int64_t, int64_t)>& progress);

}  // namespace dms
