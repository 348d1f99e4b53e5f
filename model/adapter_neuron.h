// The neuron adapter: x is one channel of the query projection that exists already, so inference needs no new
// parameters.  In the student the borrowed row is replaced by a LoRA product that starts at zero (x = B A n, or a full
// row w n), n the attention block's normed input, and the channel is taken out of the attention score.
#pragma once

#include "model/adapter.h"

namespace dms {

// Throws UserError for families whose q norm makes x nonlinear in n (Qwen3).
std::unique_ptr<Adapter> make_neuron_adapter(const EvictionOptions& eviction, const AdapterOptions& options,
                                             WeightSource& source,
                                             const std::vector<std::vector<BorrowedChannel>>& borrowed);

}  // namespace dms
