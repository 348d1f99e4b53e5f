// Hugging Face tokenizer.json: byte-level BPE with added tokens, equal to the `tokenizers` library id for id.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace dms {

struct Encoding {
  std::vector<int32_t> ids;
  std::vector<size_t> ends;  // byte of the text where each token ends; it begins where the one before ended
};

class Tokenizer {
 public:
  // `dir` holds tokenizer.json (and tokenizer_config.json).  Throws UserError on anything it cannot reproduce exactly.
  static std::shared_ptr<const Tokenizer> load(const std::string& dir);
  virtual ~Tokenizer() = default;

  // Thread-safe.  Invalid UTF-8 is replaced by U+FFFD before encoding.
  virtual std::vector<int32_t> encode(std::string_view utf8, bool add_special_tokens) const = 0;
  // Without special tokens around, of valid UTF-8, with each token's place in it.  Where normalisation changes the text,
  // a place is that of the whole changed sequence of characters.
  virtual Encoding encode_with_ends(std::string_view utf8) const = 0;
  virtual std::string decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const = 0;

  virtual int64_t vocab_size() const = 0;         // largest id + 1
  virtual const std::string& sha256() const = 0;  // of tokenizer.json's bytes
  virtual const std::string& name() const = 0;
  virtual int32_t bos_id() const = 0;  // -1 = none
  virtual int32_t eos_id() const = 0;
  virtual int32_t pad_id() const = 0;
};

}  // namespace dms
