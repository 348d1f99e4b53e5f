// Byte-pair encoding of one piece: among adjacent pairs the one of lowest rank merges, the leftmost first, until none
// is left (Sennrich et al. 2016, over bytes).  A heap and a linked list: O(n log n).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/tokenizer_json.h"

namespace dms {

class BytePairEncoder {
 public:
  explicit BytePairEncoder(const TokenizerDescription& description);

  // Appends the ids of `piece`.  Thread-safe; each thread keeps a cache of short pieces.
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;

 private:
  struct Merge {
    int32_t rank = 0;
    int32_t id = 0;
  };
  static uint64_t pair_key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  std::vector<int32_t> merged(std::string_view piece) const;

  uint64_t serial_;          // tells the caches of different encoders apart
  int32_t id_of_byte_[256];  // -1 = not in the vocabulary
  std::unordered_map<uint64_t, Merge> merges_;
  std::unordered_map<std::string, int32_t> whole_pieces_;  // filled when merges are ignored for these
  std::optional<int32_t> unk_id_;
};

}  // namespace dms
