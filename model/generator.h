// Generates from many prompts at once with compact caches: sequences join the batch as memory allows, each at its own
// length, and leave it when they stop.
//
// All share one pool of pages.  A sequence is admitted when the pages that the budget still has would hold its prompt
// uncompressed (it takes fewer); when the next token may need more pages than there are, the sequence that joined last
// gives its own back and is computed again later.  A sequence that is alone is never held up.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "model/hard_student.h"
#include "model/sampler.h"
#include "model/weights.h"

namespace dms {

struct GenerationRequest {
  std::vector<int32_t> prompt;
  int64_t max_new_tokens = 0;
  SamplingOptions sampling;
  uint64_t sample = 0;  // with the seed: which random numbers it draws
};

struct GeneratorOptions {
  std::vector<int32_t> stop_tokens;
  int64_t max_batch = 16;
  int64_t kv_budget_bytes = std::numeric_limits<int64_t>::max();
  // What the keys and values of one sequence never exceed: keys beyond the window go before that, those first which the
  // evictor would keep least willingly.
  int64_t exact_budget_bytes = std::numeric_limits<int64_t>::max();
  at::ScalarType stored_dtype = at::kFloat;  // of keys and values
  int64_t max_positions = 0;                 // prompt and generated tokens of one sequence
};

struct GenerationProgress {
  int64_t tokens_generated = 0;  // by all sequences so far
  int64_t sequences_finished = 0;
  int64_t sequences_running = 0;
  int64_t allocated_bytes = 0;       // of the pages that running sequences hold
  int64_t dense_bytes = 0;           // what the same tokens take uncompressed, in the stored dtype
  int64_t peak_allocated_bytes = 0;  // of the pool
};

// Called with each new token of a request, in order; a stop token is reported as the last one, a sequence that hits its
// limit ends with an ordinary token.  `cache` is the sequence's own: what it has read and holds.
using TokenListener = std::function<void(size_t request, int32_t token, bool is_last, const CompactCache& cache)>;

class Generator {
 public:
  Generator(WeightSource& source, const EvictionPolicy& policy, const GeneratorOptions& options);
  ~Generator();

  // Generates for all requests.  `on_progress` is called after each step; returning false ends the run.  Throws UserError
  // for a prompt that can never fit.
  void run(const std::vector<GenerationRequest>& requests, const TokenListener& on_token,
           const std::function<bool(const GenerationProgress&)>& on_progress);

 private:
  class Batch;
  WeightSource& source_;
  const EvictionPolicy& policy_;
  const GeneratorOptions options_;
};

}  // namespace dms
