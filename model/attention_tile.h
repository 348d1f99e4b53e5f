// What attention does to a tile of scores between its matrix products, on the CPU: one pass over memory each way.
//
// A tile is [heads * rows, width], rows of it `stride` apart: the rows of some query heads that read one KV head,
// stacked, against `width` keys in the order of their positions.  Row i of every head sees the keys
// [0, first_visible + i), of which [0, first_far + i) are beyond the window and carry their bias.
#pragma once

#include <cstdint>

namespace dms {

// Tiles are worked on in whole vectors: in memory their width, their stride and the arrays of their biases go on to a
// multiple of so many elements.
inline constexpr int64_t kTilePadding = 16;

struct AttentionTile {
  int64_t padded_width() const { return (width + kTilePadding - 1) / kTilePadding * kTilePadding; }
  int64_t heads, rows, width, stride;
  int64_t first_visible, first_far;  // may be negative or beyond the width
};

// Online softmax.  score: scaled q . k in, exp(score + bias - row_max) out, zero where a key is not visible and in the padding.  row_max
// [heads * rows] and row_sum are brought up to date, and out [heads * rows, head_dim], the sum of weights times values of
// the tiles before, is rescaled to the new maximum.  Start from row_max -inf, row_sum 0, out 0.
template <class Real>
void softmax_tile(const AttentionTile& tile, const Real* bias, Real* score, Real* row_max, Real* row_sum, Real* out,
                  int64_t head_dim);

// score: scaled q . k in, probabilities P = exp(score + bias - logsumexp) out.  dprobability: dOut . v in,
// dS = P * (dprobability - delta) out, both zero in the padding.  Adds the column sums of dS over far pairs to dbias [width].
template <class Real>
void gradient_tile(const AttentionTile& tile, const Real* bias, const Real* logsumexp, const Real* delta, Real* score,
                   Real* dprobability, Real* dbias);

}  // namespace dms
