// The neuron adapter: x is one channel of the query projection that exists already, so inference needs no new
// parameters.  In the student the borrowed row is replaced by a LoRA product that starts at zero (z = B A n, or a full
// row w n), n the attention block's normed input, and the channel is taken out of the attention score.
// x = z, except in families with a q norm (Qwen3): there z takes the channel's place in its head before the norm, and
// x is the channel after it.  The head's other channels are divided by the new mean square as well.
#pragma once

#include "model/adapter.h"

namespace dms {

std::unique_ptr<Adapter> make_neuron_adapter(const EvictionOptions& eviction, const AdapterOptions& options,
                                             WeightSource& source,
                                             const std::vector<std::vector<BorrowedChannel>>& borrowed);

}  // namespace dms
