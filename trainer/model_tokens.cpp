#include "trainer/model_tokens.h"

#include <filesystem>

#include "data/sha256.h"
#include "recipes/user_error.h"

namespace dms {

std::vector<std::shared_ptr<TokenFile>> open_token_files(const std::vector<std::string>& paths,
                                                         const std::string& model_dir,
                                                         const Architecture& architecture) {
  const std::string tokenizer_path = model_dir + "/tokenizer.json";
  const std::string tokenizer_sha256 = std::filesystem::exists(tokenizer_path) ? sha256_file(tokenizer_path) : "";
  std::vector<std::shared_ptr<TokenFile>> files;
  for (const std::string& path : paths) {
    files.push_back(TokenFile::open(path));
    const TokenFile& file = *files.back();
    if (file.vocab_size() > architecture.vocab_size) {
      throw UserError(path,
                      "its tokens need a vocabulary of " + std::to_string(file.vocab_size()) + ", the model has " +
                          std::to_string(architecture.vocab_size),
                      {"prepare it with this model's tokenizer"});
    }
    if (!file.tokenizer_sha256().empty() && !tokenizer_sha256.empty() && file.tokenizer_sha256() != tokenizer_sha256) {
      throw UserError(path, "was tokenized with another tokenizer.json than " + tokenizer_path,
                      {"prepare it with --tokenizer " + model_dir});
    }
  }
  return files;
}

}  // namespace dms
