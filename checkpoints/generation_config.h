// How a model's makers want it sampled: generation_config.json, or config.json where there is none.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dms {

struct GenerationConfig {
  std::vector<int32_t> stop_tokens;  // every id of eos_token_id; a model may have several
  bool do_sample = false;
  double temperature = 1.0, top_p = 1.0;
  int64_t top_k = 0;  // 0 = all
};

// Throws UserError on values of the wrong type or range.
GenerationConfig read_generation_config(const std::string& model_dir);

}  // namespace dms
