// What attention does to a tile of scores between its matrix products, on the CPU: one pass over memory each way.
//
// A tile is [heads * rows, width], rows of it `stride` apart: the rows of some query heads that read one KV head,
// stacked, against `width` keys in the order of their positions.  Row i of every head sees the keys
// [0, first_visible + i), of which [0, first_far + i) are beyond the window and carry their bias.
#pragma once

#include <cstdint>

namespace dms {

// Tiles are worked on in whole vectors: strides are multiples of this many elements, and the arrays of a tile's biases
// can be read and written that far beyond its width.
inline constexpr int64_t kTilePadding = 8;

struct AttentionTile {
  int64_t heads, rows, width, stride;
  int64_t first_visible, first_far;  // may be negative or beyond the width
};

// Online softmax.  score: scaled q . k in, exp(score + bias - row_max) out, zero where a key is not visible.  row_max
// [heads * rows] and row_sum are brought up to date, and out [heads * rows, head_dim], the sum of weights times values of
// the tiles before, is rescaled to the new maximum.  Start from row_max -inf, row_sum 0, out 0.
template <class Real>
void softmax_tile(const AttentionTile& tile, const Real* bias, Real* score, Real* row_max, Real* row_sum, Real* out,
                  int64_t head_dim);

// score: scaled q . k in, probabilities P = exp(score + bias - logsumexp) out.  dprobability: dOut . v in,
// dS = P * (dprobability - delta) out.  Adds the column sums of dS over far pairs to dbias [width].
template <class Real>
void gradient_tile(const AttentionTile& tile, const Real* bias, const Real* logsumexp, const Real* delta, Real* score,
                   Real* dprobability, Real* dbias);

}  // namespace dms
