// dms bench decode: tokens per second of decoding after a prompt, with and without a trained evictor.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "trainer/target_ratio.h"

namespace dms {

struct DecodeBenchmark {
  std::string model, adapters;  // no adapters: only eviction off
  TargetRatio target;
  std::string data;  // token file to take prompts from; "" = random tokens
  std::vector<int64_t> contexts;
  std::vector<int64_t> batches;  // one of the two is given
  int64_t kv_budget_bytes = 0;   // as many sequences as fit
  int64_t distinct = 0;          // prompts read; their caches are copied for the rest of the batch; 0 = all
  int64_t steps = 8;             // timed, after two that are not
  std::string dtype = "auto", kv_dtype = "auto";
  std::string transformers_python;  // runs tools/transformers_decode.py too; "" = does not
};

struct DecodeRow {
  std::string engine;  // dms, transformers
  bool evict = false;
  int64_t context = 0, sequences = 0;
  double prefill_seconds = 0.0;                                               // of one prompt
  double step_seconds = 0.0, step_seconds_min = 0.0, step_seconds_max = 0.0;  // median over steps
  int64_t kv_bytes = 0, peak_prefill_kv_bytes = 0;  // allocated: of all sequences; of one while its prompt is read
  double kv_read_bytes_per_s = 0.0;
  double tokens_per_s() const { return static_cast<double>(sequences) / step_seconds; }
};

struct DecodeFigures {
  std::vector<DecodeRow> rows;  // by context; then transformers, eviction off, eviction on; then by sequences
  double read_bandwidth_bytes_per_s = 0.0;
  std::string dtype, kv_dtype;
  int64_t threads = 0;
};

// `progress(text)` between parts.  Throws UserError.
DecodeFigures bench_decode(const DecodeBenchmark& benchmark, const std::function<void(const std::string&)>& progress);

// Best rate at which all threads together read memory, bytes/s.
double measure_read_bandwidth();

}  // namespace dms
