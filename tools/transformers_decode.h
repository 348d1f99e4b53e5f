// The same decoding by the library that most people would use: runs tools/transformers_decode.py, which this program
// carries, in a Python that has torch and transformers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/bench_decode.h"

namespace dms {

// A row for each number of sequences, whose caches are copies of those of `prompts`.  What the child says on stderr passes
// through.  Throws UserError when `python` cannot be started or fails.
std::vector<DecodeRow> decode_with_transformers(const std::string& python, const std::string& model,
                                                const std::vector<std::vector<int32_t>>& prompts,
                                                const std::vector<int64_t>& sequences, int64_t steps,
                                                const std::string& dtype, int64_t threads);

}  // namespace dms
