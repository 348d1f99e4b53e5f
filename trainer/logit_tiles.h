// The LM head over a chunk of positions of two models at once, in tiles of the vocabulary.
//
// Teacher and student rows are stacked, so that the head's weights are streamed once for both, and every tile is worked
// on while it is in cache.  What a softmax needs of the whole row is put together from the tiles:
//   lse = logsumexp over tiles of (m + log sum exp(l - m)),  m the tile's maximum.
// A tile keeps exp(l - m) in place of the logit l, so that a probability later costs one product, not one exp.
//
// The vocabulary is walked twice, up for the KL and down for its gradient.  Where the head is never whole, tiles are
// computed again on the second walk instead of being kept, which changes no bit.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "model/weights.h"

namespace dms {

enum class KlDirection { forward, reverse };

// The end of the network: logits = rms_norm(x, final_norm) head^T.
struct HeadWeights {
  at::Tensor final_norm_D;
  at::Tensor head_VD;
  double rms_norm_eps = 0.0;
};

// Memory for tiles of logits, used again for the next chunk.
class LogitBuffers {
 public:
  // For chunks of up to `positions`.  `keep`: every tile of a chunk has its own.
  LogitBuffers(int64_t positions, bool keep) : positions_(positions), keep_(keep) {}
  bool keep() const { return keep_; }
  // [2 * positions, columns] and [positions, columns], for a chunk of `positions`.
  at::Tensor logits(size_t tile, int64_t positions, int64_t columns, const at::TensorOptions& options);
  at::Tensor scratch(int64_t positions, int64_t columns, const at::TensorOptions& options);

 private:
  const int64_t positions_;
  const bool keep_;
  std::vector<at::Tensor> logits_;
  at::Tensor scratch_;
};

class LogitTiles {
 public:
  // Positions that one chunk may hold: both models' logits together take at most 256 MiB.
  static int64_t max_positions(int64_t vocab_size);

  // A chunk: normed_*_CD are the normalised final hidden states, the KL is that of softmax(logits / temperature).
  LogitTiles(const at::Tensor& normed_teacher_CD, const at::Tensor& normed_student_CD, KlDirection direction,
             double temperature);
  int64_t num_positions() const { return normed_teacher_CD_.size(0); }

  // First walk: the head's slices in ascending order; then the KL per position [C], nats.
  void add(const VocabularySlice& head, LogitBuffers& buffers);
  at::Tensor kl();
  // After kl(), of the stacked rows, teacher first [2C]: log sum exp of the logits, and the token with the largest one.
  const at::Tensor& lse_M() const { return lse_M_; }
  // Forward direction and buffers that kept this chunk's tiles.
  at::Tensor top1_M(LogitBuffers& buffers, int64_t vocab_size) const;
  // Second walk: the slices in descending order; then the gradient of each position's KL with respect to
  // normed_student, float32 [C, D].  Buffers that keep tiles may not have served another chunk in between.
  void add_gradient(const VocabularySlice& head, LogitBuffers& buffers);
  at::Tensor gradient();

 private:
  struct Tile {
    int64_t begin = 0;  // in the vocabulary
    at::Tensor max_M1, lse_M, weighted_difference_C;
  };
  // Columns [begin, begin + columns) of the slice; leaves exp(l - m) in `logits_MV`.
  Tile compute(const at::Tensor& normed_MD, const at::Tensor& head_VD, at::Tensor logits_MV,
               at::Tensor difference_CV) const;
  void add_gradient(const Tile& tile, const at::Tensor& head_VD, const at::Tensor& logits_MV);

  const at::Tensor normed_teacher_CD_, normed_student_CD_;
  const KlDirection direction_;
  const double temperature_;
  std::vector<Tile> tiles_;
  at::Tensor lse_M_, kl_C_, gradient_CD_;
};

}  // namespace dms
