// Needles in a haystack, by length and seed: the retrieval tasks of RULER (arXiv 2404.06654, its "niah" family), with
// their sentences.  Keys and values are drawn here, so a text is never RULER's own.
//
//                  haystack        keys   values of a key   asked for
//   niah_single_1   repeated noise  1      1 number          1
//   niah_single_2   a text          1      1 number          1
//   niah_single_3   a text          1      1 uuid            1
//   niah_multikey_1 a text          4      1 number          1
//   niah_multikey_2 other needles   many   1 number          1
//   niah_multikey_3 other needles   many   1 uuid, keys too  1
//   niah_multivalue a text          1      4 numbers         1
//   niah_multiquery a text          4      1 number          4
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/benchmark.h"

namespace dms {

const std::vector<std::string>& needle_task_names();

struct NeedleOptions {
  std::string task = "niah_single_1";
  std::string haystack_text;  // for the tasks whose haystack is a text
  int64_t count = 20;         // items
  int64_t num_tokens = 1024;  // of each prompt, at most; as near as whole sentences allow
  uint64_t seed = 0;
};

// `count_tokens` is the tokenizer's.  Throws UserError when a task is not known, when it lacks a text that is long enough,
// and when the question alone is longer than asked for.
std::vector<BenchmarkItem> make_needle_items(const NeedleOptions& options,
                                             const std::function<int64_t(std::string_view)>& count_tokens);

}  // namespace dms
