// Fits the evictor before any backward pass, from forward passes over calibration text.
//
// A pilot over a few sequences finds the importance threshold of the target eviction rate: one budget over all layers
// and heads, so layers share it as they need.  Then, layer by layer, all sequences' importance is computed, the layer's
// keep function fitted (trainer/eviction_fit.h), and the sequences move on to the next layer: one layer's features in
// memory, 1.1 forward passes in all.  At the end one global offset meets the budget on the fitted scores.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/sample_order.h"
#include "model/adapter.h"
#include "model/decoder.h"
#include "model/weights.h"
#include "recipes/schema.h"
#include "trainer/eviction_fit.h"
#include "trainer/ranks.h"

namespace dms {

struct WarmStartOptions {
  int64_t tokens = 65536;  // 0 = off
  double compression = 8.0;
  int64_t fit_rows = int64_t{1} << 18;  // that a layer's fit holds at most, about
  FitOptions fit;
};
void describe(Schema& schema, WarmStartOptions& options);

struct WarmStartResult {
  int64_t tokens = 0;
  double seconds = 0.0;
  int64_t bytes = 0;  // this rank's hidden states of all sequences and rows of one layer, at their peak
  double threshold = 0.0;
  std::vector<double> layer_eviction_rate;  // [L], on the calibration text
};

// Keys of a document that fewer queries see beyond the window than this are not fitted: their importance, an average over
// these queries, is too noisy to learn from.
int64_t fewest_far_queries(int64_t document_length);

// All ranks call with the same `samples`.  They share the forward passes by sequence and the fits by layer, each fit
// seeing all rows, and get the same adapter, the one a single rank gets.
// `progress(done, total)` is called after each layer.  `stop()` true, on all ranks, makes it throw Interrupted.
WarmStartResult warm_start(WeightSource& source, Adapter& adapter, const EvictionOptions& eviction,
                           const WarmStartOptions& options, bool attend_across_documents, const RopeTables& rope,
                           const std::vector<Sample>& samples, const std::function<void(int64_t, int64_t)>& progress,
                           const std::function<bool()>& stop, RankGroup& ranks);

}  // namespace dms
