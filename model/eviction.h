// The eviction rule, once: which keys a delayed-eviction attention head sees, in training (relaxed) and at inference.
//
// Every (layer, KV head) has one *eviction logit* per token.  The decision about key k is read `decision_shift`
// tokens later: dec[k] = logit[k + shift], undefined (never evicted) when that token lies outside k's document.
// A key is untouched while q - k <= window.  Beyond the window
//   hard (inference):   k is gone for q iff dec[k] > 0
//   relaxed (training): the score of (q, k) gains log(1 - alpha[k]), alpha = sigmoid(z),
//                       z = (dec + noise) / tau
// (Dynamic Memory Sparsification, arXiv 2506.05345, section 3; the shift is that of NVIDIA's trainer.)
// Truncation is part of the relaxation's definition: z >= truncate_at means gone, z <= -17 means kept, because there
// log(1 - alpha) is 0 to the last float32 bit.  Between the two a key is *soft*.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "model/attention_path.h"
#include "recipes/schema.h"

namespace dms {

struct EvictionOptions {
  int64_t window = 64;
  int64_t decision_shift = 1;
  double alpha_scale = 100.0;
  double alpha_offset = 5.0;
  double tau = 0.1;
  double truncate_at = 17.0;  // model/README.md: what truncation changes
  AttentionPath attention = AttentionPath::automatic;
};
void describe(Schema& schema, EvictionOptions& options);

// Where documents begin inside a sequence: 0 = first < ... < last = T.  One document is {0, T}.
using DocumentOffsets = std::vector<int64_t>;

// A bias that removes a key exactly: exp(kGoneBias - lse) is 0 for every finite lse, yet no arithmetic on it makes a
// NaN, and a row whose keys are all gone keeps a finite log-sum-exp that vanishes in the merge.
inline constexpr double kGoneBias = -1e30;

// dec[g, t] = logit[g, t + shift] within documents; a large negative number where undefined.  Differentiable.
at::Tensor decisions_GT(const at::Tensor& logit_GT, int64_t shift, const DocumentOffsets& documents);

struct Relaxation {
  at::Tensor alpha_GT;        // probability that key t is evicted, float32
  at::Tensor bias_GT;         // log(1 - alpha), truncated; added to key t's scores beyond the window
  at::Tensor token_alpha_GT;  // the same probabilities before the shift: entry t belongs to logit t
};
// Differentiable in logit_GT.  noise_GT[g, t] belongs to logit t, and so to the decision about key t - shift.
Relaxation relax(const at::Tensor& logit_GT, const at::Tensor& noise_GT, const EvictionOptions& options,
                 const DocumentOffsets& documents);

// Keys that have at least one query beyond their window in their own document: the keys over which mean(alpha) and
// the eviction rate run.  float32 [T], 1 = counted.
at::Tensor counted_keys_T(int64_t num_tokens, int64_t window, const DocumentOffsets& documents);
int64_t num_counted_keys(int64_t window, const DocumentOffsets& documents);

}  // namespace dms
