// Which query channel each KV head's neuron adapter borrows: the least important channel of any query head of the
// group, measured on calibration text.  Importance of channel c of head h is mean(q_c^2) times the mean of k^2 over the
// two channels of its rotary pair (rotation mixes exactly those).  A channel so chosen costs ~500 times less KL than a
// fixed place, so no annealing phase is needed.
#pragma once

#include <cstdint>
#include <vector>

#include "data/sample_order.h"
#include "model/adapter.h"
#include "model/rope.h"
#include "model/weights.h"

namespace dms {

// [L][G].
std::vector<std::vector<BorrowedChannel>> choose_neurons(WeightSource& source, const RopeTables& rope,
                                                         const Sample& calibration);

// Mean KL(teacher || teacher without the borrowed channels), nats per token: what borrowing costs before any eviction.
double borrowing_cost_kl(WeightSource& source, const Adapter& adapter, const RopeTables& rope, const Sample& text);

}  // namespace dms
