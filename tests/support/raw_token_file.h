// HDF5 token files written by hand through the C library, right or wrong in any one way: what `dms prepare` would
// never write.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dms {

struct RawTokenFile {
  enum class TokenType { uint32, float64, text };

  std::string format = "dms-tokens";
  int64_t version = 1;
  int64_t complete = 1;
  int64_t vocab_size = 300;
  TokenType token_type = TokenType::uint32;
  std::vector<uint32_t> tokens = std::vector<uint32_t>(1000, 7);
  bool tokens_in_two_dimensions = false;
  std::vector<uint64_t> offsets = {0, 400, 1000};
  bool with_tokens = true, with_offsets = true, with_attributes = true;
};

// The bytes of such a file.
std::string raw_token_file(const RawTokenFile& file);

}  // namespace dms
