// Attention on the CPU, exact and in O(T) memory, in tiles that stay in the cache: plain causal, and under delayed
// eviction with every far key (dense) or with the survivors alone (sparse).
//
// A block is some consecutive rows of one KV head, its R query heads stacked.  It sees the *survivors* before its own
// keys (gathered; visible and far for every row) and its own keys (what is visible and what is far differs by row).
// Forward: online softmax over the block's tiles.  Backward: the five matrix products of each tile.  In between,
// model/attention_tile.h.  Blocks are dealt to threads as these become free; what a task computes and where it adds do
// not depend on that, so results are bit-equal over thread counts.
// Tiles are float32, or float64 for float64 inputs, whatever the inputs' type.
#pragma once

#include "model/flash_kernel.h"

namespace dms {

inline constexpr int64_t kCpuBlockRows = 64;

// One sequence (B = 1).  `survivors`: undefined visits every key.  A window of at least T - 1 is plain causal attention,
// which needs no bias (undefined).
FlashOutput cpu_tiled_attention(const AttentionTensors& in, int64_t window, const Survivors* survivors, double scale);
AttentionGradients cpu_tiled_attention_backward(const at::Tensor& dout_BHTd, const AttentionTensors& in,
                                                const FlashOutput& merged, int64_t window, const Survivors* survivors,
                                                double scale);

}  // namespace dms
