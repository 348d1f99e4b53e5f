// An HDF5 token file whose every field is taken from the input, written by the HDF5 library: what is fuzzed is this
// project's judgement of well-formed HDF5.  Bytes that are no HDF5 at all never reach that library from a sealed file.
#include <cstring>

#include "data/token_file.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/support/raw_token_file.h"

namespace {

class Fields {
 public:
  Fields(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  uint8_t byte() { return at_ < size_ ? data_[at_++] : 0; }
  uint64_t number() {  // small ones, and the edges of 64 bits
    const uint8_t kind = byte();
    if (kind < 128) return kind;
    uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = value << 8 | byte();
    return kind < 192 ? value : uint64_t{0} - (value & 0xFF);
  }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static dms::MemoryFile file;
  Fields fields(data, size);
  dms::RawTokenFile raw;
  const uint8_t flags = fields.byte();
  raw.with_tokens = (flags & 1) == 0;
  raw.with_offsets = (flags & 2) == 0;
  raw.with_attributes = (flags & 4) == 0;
  raw.tokens_in_two_dimensions = (flags & 8) != 0;
  if (flags & 16) raw.format = std::string(fields.byte(), 'x');
  if (flags & 32) raw.token_type = static_cast<dms::RawTokenFile::TokenType>(fields.byte() % 3);
  if (flags & 64) raw.version = static_cast<int64_t>(fields.number());
  if (flags & 128) raw.complete = static_cast<int64_t>(fields.number());
  raw.vocab_size = static_cast<int64_t>(fields.number());
  raw.tokens.assign(fields.byte(), static_cast<uint32_t>(fields.number()));
  if (raw.tokens_in_two_dimensions) raw.tokens.resize(raw.tokens.size() / 2 * 2 + 2);
  raw.offsets.clear();
  for (int i = 1 + fields.byte() % 16; i > 0; --i) raw.offsets.push_back(fields.number());
  dms::expect_at_most_user_error([&] {
    const auto tokens = dms::TokenFile::open(file.holding(dms::raw_token_file(raw)));
    const auto& offsets = tokens->document_offsets();
    if (offsets.front() != 0 || offsets.back() != tokens->num_tokens()) std::abort();
    for (const int32_t id : tokens->tokens(0, tokens->num_tokens())) {
      if (id < 0 || id >= tokens->vocab_size()) std::abort();
    }
  });
  return 0;
}
