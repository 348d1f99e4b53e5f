// Writes a token file (layout in data/README.md) front to back.  Nothing appears under the final name before finish()
// has returned; a writer that dies leaves at most NAME.partial.<pid>.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace dms {

struct TokenSource {
  std::string name;  // base name: directories can be private
  std::string sha256;
  uint64_t size_bytes = 0;
};

struct TokenFileInfo {
  std::string created_by;
  int64_t vocab_size = 0;
  std::string tokenizer_sha256;
  std::string tokenizer_name;
  std::string chat_template_sha256;  // "" = no template was applied
  std::string template_name;
  std::string date_string;
  int32_t bos_token_id = -1;
  int32_t eos_token_id = -1;
  int32_t pad_token_id = -1;
  std::string options_json = "{}";
  std::vector<TokenSource> sources;
  bool has_loss_mask = false;
};

class TokenFileWriter {
 public:
  // Throws UserError when the place cannot be written to.
  TokenFileWriter(std::string path, TokenFileInfo info);
  ~TokenFileWriter();
  TokenFileWriter(const TokenFileWriter&) = delete;
  TokenFileWriter& operator=(const TokenFileWriter&) = delete;

  // Appends one document: `source` is a row of info.sources, `line` a line or record number in it, from 1.
  // `loss_mask` has one entry a token when info.has_loss_mask, none otherwise.
  void add_document(std::span<const uint32_t> tokens, uint32_t source, uint64_t line,
                    std::span<const uint8_t> loss_mask = {});
  // Completes, syncs and renames.  Throws UserError when no token was added, IoError when the file system fails.
  void finish();

  int64_t num_tokens() const;
  int64_t num_documents() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dms
