// Whether a model still finds what it read long ago (data/planted_text.h), with the cache as it came, under a trained
// evictor, and under 4 sinks + a window that keeps as many keys as the evictor does on average when it is asked.
//
// A fact counts as recalled when every token of its answer is the likeliest one, the tokens before it given.  Each
// question is put to a copy of the cache that the text has left, so none helps another.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "data/planted_text.h"
#include "model/adapter.h"
#include "model/eviction.h"
#include "model/weights.h"

namespace dms {

inline constexpr size_t kNumRecallMethods = 3;  // the model as it came, the evictor, sinks + window

struct RecallRecord {
  struct Fact {
    bool is_number = false;
    int64_t distance = 0;
    std::array<bool, kNumRecallMethods> recalled{};
    std::array<double, kNumRecallMethods> answer_nll{};  // nats a token of the answer
  };
  std::vector<Fact> facts;
  int64_t num_texts = 0, length = 0;
  // Summed over layers, KV heads and texts, at the moment of asking.
  std::array<int64_t, kNumRecallMethods> live_keys{}, allocated_bytes{};
  int64_t baseline_live_keys = 0;  // of a head, that sinks + window keep
};

// All texts have one length.  `progress(done, total)` counts texts, each method's pass as one.
RecallRecord evaluate_recall(WeightSource& source, const Adapter& adapter, const EvictionOptions& eviction,
                             const std::vector<PlantedText>& texts,
                             const std::function<void(int64_t, int64_t)>& progress);

}  // namespace dms
