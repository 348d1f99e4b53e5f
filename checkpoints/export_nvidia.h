// Export target `nvidia`: a whole model for NVIDIA's DMS code (Model-Optimizer, experimental/dms), which runs Qwen3.
// Weights and settings only: their code is loaded from a checkout of theirs.  Its rules, read from their sources:
//   - linear adapters (dms_separate_alpha true): `dms_proj_alpha.weight`, `dms_proj_alpha_norm.weight` beside the base
//     tensors, reading the residual before input_layernorm; no bias per head;
//   - neuron (dms_separate_alpha false, their default): no extra tensor; channel d-1 of each group's first query head
//     after q_norm, zeroed before RoPE and again after it;
//   - logit = dms_alpha_scale x - dms_initial_alpha_offset > 0 evicts, judged by the next token (shift 1), once
//     q - k > dms_window_size;
//   - the window must exceed the paged block, which FlashAttention wants a multiple of 256.
#pragma once

#include <string>

#include "checkpoints/export.h"

namespace dms {

std::string nvidia_objection(const Architecture& architecture, const AdapterFile& adapters);
void write_nvidia(const ExportInput& input, const std::string& dir);

}  // namespace dms
