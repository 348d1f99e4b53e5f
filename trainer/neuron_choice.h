// Which query channel each KV head's neuron adapter borrows, measured on calibration text.
//   adapter.channel: any   the least important channel of any query head of the group.  Importance of channel c of head
//                          h is mean(q_c^2) times the mean of k^2 over the two channels of its rotary pair (rotation
//                          mixes exactly those).  A channel so chosen costs ~500 times less KL than a fixed place.
//   adapter.channel: last  channel d-1, for layouts that read it of the group's first head.  Heads of a group may change
//                          places, and, without a q norm, the last rotary pair may be turned: the head and the
//                          direction in its last pair whose removal moves the attention output least.
// Behind a q norm a channel's value is bounded by sqrt(d) times the norm's weight: one that can never say "evict" is
// not borrowed.
#pragma once

#include <cstdint>
#include <vector>

#include "data/sample_order.h"
#include "model/adapter.h"
#include "model/rope.h"
#include "model/weights.h"

namespace dms {

// [L][G].  Throws UserError when no channel can carry the decisions.
std::vector<std::vector<BorrowedChannel>> choose_neurons(WeightSource& source, const AdapterOptions& options,
                                                         const EvictionOptions& eviction, const RopeTables& rope,
                                                         const Sample& calibration);

// KL(teacher || teacher without the borrowed channels), mean over tokens in nats: what borrowing costs before any
// eviction.
struct BorrowingCost {
  double all = 0.0;                // every layer's channels
  std::vector<double> of_layer_L;  // one layer's alone
};
BorrowingCost borrowing_cost_kl(WeightSource& source, const Adapter& adapter, const RopeTables& rope,
                                const Sample& text);

}  // namespace dms
