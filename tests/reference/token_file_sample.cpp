// Writes and reads token files for token_file_reference.py.
//   token_file_sample write FILE   a file whose token i has id i % 1000, documents of 3, 0, 100000 and 7 tokens, a mask
//   token_file_sample read FILE    prints what the reader gives as JSON; a refusal on stderr, exit code 2
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/token_file.h"
#include "data/token_file_writer.h"
#include "recipes/user_error.h"

namespace dms {
namespace {

void write(const std::string& path) {
  TokenFileInfo info;
  info.created_by = "token_file_sample";
  info.vocab_size = 1000;
  info.tokenizer_sha256 = std::string(64, 'a');
  info.tokenizer_name = "tökenizer";
  info.eos_token_id = 2;
  info.sources = {{"größe.txt", std::string(64, '1'), 10}, {"b.jsonl", std::string(64, '2'), 1ull << 40}};
  info.has_loss_mask = true;
  TokenFileWriter writer(path, info);
  uint32_t next = 0;
  uint64_t line = 0;
  for (const size_t length : {3, 0, 100000, 7}) {
    std::vector<uint32_t> tokens(length);
    std::vector<uint8_t> mask(length);
    for (size_t i = 0; i < length; ++i, ++next) {
      tokens[i] = next % 1000;
      mask[i] = next % 2;
    }
    writer.add_document(tokens, line % 2, line + 1, mask);
    ++line;
  }
  writer.finish();
}

void read(const std::string& path) {
  const auto file = TokenFile::open(path);
  std::cout << nlohmann::json{{"tokens", file->tokens(0, file->num_tokens())},
                              {"offsets", file->document_offsets()},
                              {"loss_mask", file->loss_mask(0, file->num_tokens())},
                              {"vocab_size", file->vocab_size()},
                              {"tokenizer_sha256", file->tokenizer_sha256()},
                              {"attributes", nlohmann::json::parse(file->attributes_json())}};
}

}  // namespace
}  // namespace dms

int main(int argc, char** argv) {
  if (argc != 3) return 1;
  try {
    std::string(argv[1]) == "write" ? dms::write(argv[2]) : dms::read(argv[2]);
  } catch (const dms::UserError& error) {
    std::cerr << error.what() << '\n';
    return 2;
  }
}
