// Export target `fastdms`: a whole model for the FastDMS runtime (github.com/shisa-ai/FastDMS; PyPI fastdms), Llama and
// Qwen3.  The eviction value is a query channel of the weights (checkpoints/fixed_neuron.h), dms_metadata.json has the
// settings.  Its rules, read from release 0.2.0:
//   - evict iff q > alpha_offset / alpha_scale, judged by the token's own query (shift 0), channel zeroed before RoPE
//     only; a key stays while q - k <= window_size;
//   - every tensor of every *.safetensors file in the directory must be a parameter: no other tensor may be there;
//   - its Llama knows the RoPE types default, linear and llama3, its Qwen3 ignores rope_scaling.
#pragma once

#include <string>

#include "checkpoints/export.h"

namespace dms {

std::string fastdms_objection(const Architecture& architecture, const AdapterFile& adapters);
void write_fastdms(const ExportInput& input, const std::string& dir);

}  // namespace dms
