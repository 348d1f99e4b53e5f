// What the student's attention costs beside the teacher's: one layer, forward and backward, by every way to compute it.
//
//   causal     the teacher's plain causal attention as the library computes it and its gradients
//   two_part   delayed eviction over every far key (eviction.attention: dense)
//   sparse     delayed eviction over survivors (eviction.attention: sparse)
//   dense      a [T, T] mask through scaled_dot_product_attention, as one would write it; only up to T = 4096
//
// Without a model: random q, k, v, and a built-in profile of survivors as trained evictors leave them, ragged over
// heads: of a head at quantile u in (0, 1), 0.94 u^6.5 of the keys are kept (0 to 94%, mean 12.5%) and 0.9 u (1 - u)
// soft (mean 15%), at random places.  With a model and adapters: its own q, k, v and decisions, layer by layer.
//
// Cost depends on survivors in the sparse path only, so the others are timed on the first layer and it on all of them;
// its figure is the mean over layers of one layer's time.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "tools/timing.h"
#include "trainer/recipe.h"

namespace dms {

struct AttentionBenchmark {
  int64_t sequence_length = 0, window = 0;
  int64_t num_heads = 9, num_kv_heads = 3, head_dim = 64, num_layers = 8;  // without a model
  std::string model, adapters, data;                                       // data: tokens; empty: random ones
  int64_t repeats = 3;                                                     // timed, after one that is not
  ComputeDtype dtype = ComputeDtype::automatic;
  std::string device = "cpu";
};

struct AttentionFigures {
  struct Passes {
    Timing forward, backward;
    double seconds() const { return forward.median + backward.median; }
  };
  Passes causal, two_part, sparse;
  std::optional<Passes> dense;
  // The path that training takes by itself, layer by layer, over plain causal attention; forward and backward.
  double student_over_causal = 0.0;
  int64_t num_layers = 0, num_sparse_layers = 0;  // layers where that path is the sparse one
  double kept_share = 0.0, soft_share = 0.0;      // of all far keys
  // Forward, of one layer: two products of 2 d FLOPs a (query, key) pair and query head.  Backward: 2.5 times that.
  double causal_flops = 0.0, sparse_flops = 0.0;  // pairs that the mathematics needs; pairs that the path computes
  std::string dtype;
  int threads = 0;
};

// Throws UserError.
AttentionFigures bench_attention(const AttentionBenchmark& benchmark);

}  // namespace dms
