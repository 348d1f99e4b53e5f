// The HDF5 token file: documents end to end as token ids, their offsets, sources and loss mask.  Layout "dms-tokens"
// version 1 (documented in data/README.md).  The only user of HDF5.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace dms {

class TokenFile {
 public:
  // Validates format, version, completeness, offsets and ids.  Throws UserError.
  static std::shared_ptr<TokenFile> open(const std::string& path);
  virtual ~TokenFile() = default;

  virtual const std::string& path() const = 0;
  virtual int64_t num_tokens() const = 0;
  virtual int64_t vocab_size() const = 0;
  virtual const std::string& tokenizer_sha256() const = 0;
  // [num_documents + 1]; document j is tokens[offsets[j] .. offsets[j+1]).
  virtual const std::vector<int64_t>& document_offsets() const = 0;
  virtual std::vector<int32_t> tokens(int64_t begin, int64_t end) const = 0;
  // 1 = the next-token distribution at this position is a target; empty when the file has no mask (all are).
  virtual std::vector<uint8_t> loss_mask(int64_t begin, int64_t end) const = 0;
  // For `dms inspect`: the root attributes, and the base names of the files the documents came from (none when unknown).
  virtual std::string attributes_json() const = 0;
  virtual std::vector<std::string> source_names() const { return {}; }
};

}  // namespace dms
