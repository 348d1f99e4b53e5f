#include "data/token_file_seal.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <vector>

#include "data/sha256.h"
#include "recipes/user_error.h"

namespace dms {
namespace {

constexpr std::string_view kSealBegin = "\ndms-tokens sha256 ";
constexpr size_t kSealBytes = kSealBegin.size() + 64 + 1;

std::string seal_of_prefix(const std::string& path, uintmax_t num_bytes) {
  std::ifstream file(path, std::ios::binary);
  Sha256 hash;
  std::vector<char> buffer(1 << 20);
  while (num_bytes > 0 &&
         file.read(buffer.data(), static_cast<std::streamsize>(std::min<uintmax_t>(num_bytes, buffer.size())))) {
    hash.update({buffer.data(), static_cast<size_t>(file.gcount())});
    num_bytes -= static_cast<uintmax_t>(file.gcount());
  }
  if (num_bytes > 0) throw UserError(path, "cannot be read to its end");
  return std::string(kSealBegin) + hash.hex() + "\n";
}

}  // namespace

std::string seal_of(const std::string& path) { return seal_of_prefix(path, std::filesystem::file_size(path)); }

void check_seal(const std::string& path) {
  std::error_code unreadable;
  const uintmax_t size = std::filesystem::file_size(path, unreadable);
  if (unreadable || size < kSealBytes) return;
  std::string seal(kSealBytes, '\0');
  std::ifstream file(path, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(size - kSealBytes));
  if (!file.read(seal.data(), static_cast<std::streamsize>(seal.size())) || !seal.starts_with(kSealBegin)) return;
  if (seal != seal_of_prefix(path, size - kSealBytes)) {
    throw UserError(path, "the SHA-256 of its bytes is not the one written at its end",
                    {"the file is damaged: copy it again or remake it with 'dms prepare'"});
  }
}

}  // namespace dms
