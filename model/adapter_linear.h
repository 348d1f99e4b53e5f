// The linear adapter: x = Linear_{D->G}(RMSNorm_a(r)), r the residual stream *before* the layer's input norm,
// RMSNorm_a with its own trainable weight (NVIDIA Model-Optimizer's "separate alpha" layout).  RMSNorm_a starts as the
// input norm's copy, so with the same eps the product folds exactly into W diag(w_a / w_in) on post-norm states.
#pragma once

#include "model/adapter.h"

namespace dms {

std::unique_ptr<Adapter> make_linear_adapter(const EvictionOptions& eviction, const AdapterOptions& options,
                                             WeightSource& source);

}  // namespace dms
