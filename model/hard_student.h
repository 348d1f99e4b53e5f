// The student as it runs at inference: hard eviction over a compact cache, in chunks of any length.  Sliding-window and
// sinks-plus-window baselines are policies of the same machinery, so that all are measured alike.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>

#include "model/adapter.h"
#include "model/kv_cache.h"
#include "model/rope.h"
#include "model/weights.h"

namespace dms {

// Who decides about keys: logits > 0 evict a key once it is more than `window` tokens old.
class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  virtual int64_t window() const = 0;
  virtual int64_t decision_shift() const = 0;
  // For n tokens, which may belong to sequences of their own: `position_n` (int64, on the CPU) is where each stands in its.
  virtual AdapterReading read(int64_t layer, const at::Tensor& x_nD, const at::Tensor& normed_nD,
                              const at::Tensor& position_n) const = 0;
};

// A trained adapter's decisions.
std::unique_ptr<EvictionPolicy> adapter_policy(const Adapter& adapter, const EvictionOptions& eviction);
// What baselines of sinks + window keep of a text's beginning.
inline constexpr int64_t kNumSinks = 4;
// The first `num_sinks` tokens and the newest ones, `num_live` in all (the current token included).
// num_sinks = 0 is a sliding window.
std::unique_ptr<EvictionPolicy> sinks_and_window_policy(int64_t num_kv_heads, int64_t num_sinks, int64_t num_live);

// Nothing is ever evicted: the model as it came.
std::unique_ptr<EvictionPolicy> keep_everything_policy(int64_t num_kv_heads);

// Runs the n tokens whose embeddings are x_nD through all layers, extending `cache`; returns the last layer's output.
// `logits`, when given, receives each layer's [G, n] logits.
at::Tensor hard_student_chunk(WeightSource& source, const EvictionPolicy& policy, CompactCache& cache,
                              const at::Tensor& x_nD, const RopeTables& rope,
                              std::vector<at::Tensor>* logits = nullptr);

// One new token of each of several sequences, x_BD; every cache is at its own position.  Returns the last layer's output.
at::Tensor hard_student_step(WeightSource& source, const EvictionPolicy& policy,
                             const std::vector<CompactCache*>& caches, const at::Tensor& x_BD, const RopeTables& rope);

// A cache that shares `pool` with others, or has a tight one of its own.
CompactCache make_cache(const Architecture& architecture, const EvictionPolicy& policy, std::shared_ptr<KvPool> pool);
CompactCache make_cache(const Architecture& architecture, const EvictionPolicy& policy,
                        const at::TensorOptions& options);

}  // namespace dms
