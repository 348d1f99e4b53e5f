// Layouts that keep the eviction value in the weights themselves: it is channel d-1 of the first query head of each KV
// group, read before RoPE, one scale and one offset for the whole model.  Puts a neuron adapter there, exactly:
//   - the borrowed head changes places with the first of its group (rows of q_proj, columns of o_proj);
//   - a channel that lies at an angle in the last rotary pair is turned to channel d-1, in q and k of the whole group;
//     RoPE commutes with that turn, so no score changes (families without q/k norm only);
//   - the row, a product of low rank multiplied out, replaces that of q_proj, and its bias becomes 0.
// Another pair than the last rotates with another frequency and cannot get there.
#pragma once

#include <optional>
#include <string>

#include "checkpoints/adapter_file.h"
#include "checkpoints/export_files.h"
#include "model/architecture.h"

namespace dms {

// Settings with a bias per KV head as settings without one that decide alike:
//   scale x > offset - bias[g]   <=>   scale (row_scale[g] x) > common,   row_scale[g] = common / (offset - bias[g]).
struct CommonOffset {
  double offset = 0.0;
  at::Tensor row_scale_LG;  // float64, all positive
};
// Empty when the thresholds offset - bias[g] do not all have the same sign.
std::optional<CommonOffset> common_offset(const AdapterFile& adapters, const Architecture& architecture);

// Why adapters with a bias per KV head have no common offset, or ""; before training there is no telling, which is an
// objection too.
std::string common_offset_objection(const AdapterFile& adapters, const Architecture& architecture);

// Why a neuron adapter cannot be put into the fixed place, or "".
std::string fixed_neuron_objection(const AdapterFile& adapters, const Architecture& architecture);

// The edit that puts it there.  Requires that there is no objection.
TensorEdit fixed_neuron_edit(const AdapterFile& adapters, const Architecture& architecture);

}  // namespace dms
