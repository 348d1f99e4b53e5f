// Token sequences for the tiny model: random but reproducible, with every position counted and one document.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "data/sample_order.h"

namespace dms {

inline std::vector<int32_t> tiny_tokens(int64_t num_tokens, uint64_t seed, int32_t vocab_size = 300) {
  std::mt19937_64 engine(seed);
  std::vector<int32_t> tokens;
  for (int64_t t = 0; t < num_tokens; ++t) {
    tokens.push_back(static_cast<int32_t>(engine() % static_cast<uint64_t>(vocab_size)));
  }
  return tokens;
}

inline Sample tiny_sample(int64_t num_tokens, uint64_t seed) {
  return {tiny_tokens(num_tokens, seed), std::vector<uint8_t>(static_cast<size_t>(num_tokens), 1), {0, num_tokens}};
}

}  // namespace dms
