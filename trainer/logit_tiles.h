// The LM head over a chunk of positions of two models at once, in tiles of the vocabulary.
//
// Teacher and student rows are stacked, so that the head's weights are streamed once for both, and every tile is worked
// on while it is in cache.  What a softmax needs of the whole row is put together from the tiles:
//   lse = logsumexp over tiles of (m + log sum exp(l - m)),  m the tile's maximum.
// A tile keeps exp(l - m) in place of the logit l, so that a probability later costs one product, not one exp.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace dms {

enum class KlDirection { forward, reverse };

// The end of the network: logits = rms_norm(x, final_norm) head^T.
struct HeadWeights {
  at::Tensor final_norm_D;
  at::Tensor head_VD;
  double rms_norm_eps = 0.0;
};

class LogitTiles {
 public:
  // Positions that one chunk may hold: both models' logits together take at most 256 MiB.
  static int64_t max_positions(int64_t vocab_size);

  // Buffers for chunks of up to `positions` positions.
  LogitTiles(const at::Tensor& head_VD, int64_t positions);

  // KL per position [C], nats, in the direction asked for, of softmax(logits / temperature); normed_*_CD: the normalised
  // final hidden states.
  at::Tensor kl(const at::Tensor& normed_teacher_CD, const at::Tensor& normed_student_CD, KlDirection direction,
                double temperature);
  // After kl(): the gradient of each position's KL with respect to normed_student, float32 [C, D]; consumes the tiles.
  at::Tensor gradient();

 private:
  struct Tile {
    int64_t begin = 0, end = 0;  // of the vocabulary
    at::Tensor logits_MV;        // teacher rows, then student rows
    at::Tensor max_M1;
  };

  const at::Tensor head_VD_;
  std::vector<Tile> tiles_;
  at::Tensor scratch_CV_;

  // Of the last kl().
  KlDirection direction_ = KlDirection::forward;
  double temperature_ = 1.0;
  int64_t positions_ = 0;
  at::Tensor lse_M_, kl_C_;
};

}  // namespace dms
