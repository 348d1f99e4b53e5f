// Rotary position embedding, half-split pairs (i, i + d/2), with the frequency scalings of the supported families.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "model/architecture.h"

namespace dms {

struct RopeTables {
  at::Tensor cos_Td, sin_Td;  // [T, d] in the activation dtype

  RopeTables slice(int64_t begin, int64_t end) const {
    return {cos_Td.slice(0, begin, end), sin_Td.slice(0, begin, end)};
  }
};

// Tables for positions 0 .. num_positions-1; angles in float32 as in the reference implementation.
RopeTables make_rope_tables(const Architecture& architecture, int64_t num_positions,
                            const at::TensorOptions& activation_options);

// x_TNd: [T, heads, d].  Differentiable in x.
at::Tensor apply_rope(const at::Tensor& x_TNd, const RopeTables& tables);

}  // namespace dms
