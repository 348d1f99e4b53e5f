// What `dms bench decode` measured, drawn: one self-contained HTML page in the report's style.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dms {

struct DecodePoint {
  bool is_dms = false, evict = false;  // neither: transformers
  int64_t context = 0, sequences = 0;
  double tokens_per_s = 0.0, kv_bytes = 0.0;
};

// Speed and memory over the number of sequences, a pair of charts for each context; or over the context when each has one
// number of sequences per engine.
std::string decode_page(const std::vector<DecodePoint>& points);

}  // namespace dms
