// Export target `hf`: a directory for plain transformers,
//   AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)
// with no package of ours: the base model's weight files and tokenizer files byte for byte, the adapters in one more
// safetensors file, an index over both, config.json with the DMS settings, and the Python code that runs it
// (templates/, carried inside the program).
//
// config.json has a model type of its own (dms_llama, ...): with the base model's, transformers would load the dense
// model without a word when trust_remote_code is forgotten.  RoPE and dtype keys are the old ones, which transformers 4
// and 5 both read; with the new ones alone, transformers 4 silently takes theta 10000.
#pragma once

#include <string>

#include "checkpoints/export.h"

namespace dms {

void write_hf(const ExportInput& input, const std::string& dir);

}  // namespace dms
