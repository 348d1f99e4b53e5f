// What `dms bench decode` measured, drawn in the report's style: part of the report, or a page of its own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/report_template.h"

namespace dms {

struct DecodePoint {
  bool is_dms = false, evict = false;  // neither: transformers
  int64_t context = 0, sequences = 0;
  double tokens_per_s = 0.0, kv_bytes = 0.0;
  double kv_budget_bytes = 0.0;  // > 0: as many sequences as this held
};

const char* decode_engine_name(const DecodePoint& point);

// For each context at an equal KV budget, or for the only number of sequences there is: bars.  Otherwise speed and memory
// over the number of sequences, a pair of charts for each context; or over the context when each has one number.
Markup decode_charts(const ReportTemplate& blocks, const std::vector<DecodePoint>& points);

// One self-contained HTML page.
std::string decode_page(const std::vector<DecodePoint>& points);

}  // namespace dms
