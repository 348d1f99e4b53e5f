// The sparse path of delayed-eviction attention on the CPU: FlashKernel::sparse and sparse_backward.
//
// One task is a block of rows of one KV head, its R query heads stacked: a masked local part (the block's own keys and
// the window before them, biased where they are far), and the unmasked rectangle over the survivors before the block.
// Tasks are dealt to threads as they become free; what a task computes and where it adds do not depend on that, so
// results are bit-equal over thread counts.
//
// Forward: the library's flash op twice, bias as its additive mask, merged by log-sum-exp.  Backward: its five matrix
// products on tiles that stay in the cache.  The library's backward returns no gradient of a mask; the extra head-dim
// column that would carry it costs a fifth of the products' rate at d = 64 (65 columns), so the tiles are ours.
#pragma once

#include "model/flash_kernel.h"

namespace dms {

inline constexpr int64_t kCpuSparseBlockRows = 128;

FlashOutput cpu_sparse(const AttentionTensors& in, const Survivors& survivors, double scale);
AttentionGradients cpu_sparse_backward(const at::Tensor& dout_BHTd, const AttentionTensors& in,
                                       const FlashOutput& merged, const Survivors& survivors, double scale);

}  // namespace dms
