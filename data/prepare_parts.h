// The finished parts of an interrupted `dms prepare`: one file a unit of work in FILE.h5.parts/, each written aside and
// renamed, each bound to the plan it belongs to (inputs, tokenizer, options) and carrying its own SHA-256.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace dms {

struct TokenPart {
  struct Document {
    uint64_t num_tokens = 0;
    uint64_t source = 0;
    uint64_t line = 0;
  };
  std::vector<Document> documents;
  std::vector<uint32_t> tokens;         // of all documents, end to end
  std::vector<uint8_t> loss_mask;       // one a token, or empty when the plan has no masks
  uint64_t num_short_documents = 0;     // left out
  uint64_t num_repaired_documents = 0;  // had invalid UTF-8
  uint64_t num_altered_documents = 0;   // the chat template leaves out some of what the assistant wrote
  uint64_t num_empty_records = 0;       // none of their solutions was chosen
  uint64_t num_bad_records = 0;         // left out by --skip-bad-records
};

class PartsDirectory {
 public:
  // `fingerprint` is a SHA-256 over everything that the parts depend on; parts of another plan are removed.  The
  // directory is this process's own until it ends: throws UserError when another one works there.
  PartsDirectory(std::string path, std::string fingerprint);
  ~PartsDirectory();
  PartsDirectory(const PartsDirectory&) = delete;
  PartsDirectory& operator=(const PartsDirectory&) = delete;

  // nullopt: not there, or damaged (then it is to be made again).
  std::optional<TokenPart> read(uint64_t unit) const;
  void write(uint64_t unit, const TokenPart& part) const;  // thread-safe for different units
  void remove_all();                                       // the directory itself included

 private:
  std::string part_path(uint64_t unit) const;

  std::string path_, fingerprint_;
  int lock_ = -1;
};

}  // namespace dms
