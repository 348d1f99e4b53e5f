#include "data/prepare_parts.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "data/staged_file.h"
#include "recipes/user_error.h"

namespace dms {
namespace fs = std::filesystem;
namespace {

static_assert(std::endian::native == std::endian::little, "parts hold little-endian integers");

constexpr std::string_view kMagic = "dmspart2";
constexpr size_t kHashBytes = 64;

struct PartHeader {  // after the magic and the fingerprint
  uint64_t unit, num_documents, num_tokens, num_mask_bytes;
  uint64_t num_short_documents, num_repaired_documents, num_altered_documents, num_empty_records, num_bad_records;
};

template <typename T>
std::string_view bytes_of(const T* values, size_t count) {
  return {reinterpret_cast<const char*>(values), count * sizeof(T)};
}

}  // namespace

PartsDirectory::PartsDirectory(std::string path, std::string fingerprint)
    : path_(std::move(path)), fingerprint_(std::move(fingerprint)) {
  std::error_code error;
  fs::create_directory(path_, error);
  if (!fs::is_directory(path_)) {
    throw UserError(path_, "cannot be made: " + (error ? error.message() : "it is not a directory"),
                    {"the directory of --out must exist and be writable"});
  }
  lock_ = ::open((path_ + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (lock_ < 0) throw UserError(path_, std::string("is not writable: ") + std::strerror(errno));
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(lock_);
    throw UserError(path_, "is in use by another 'dms prepare'", {"wait for it, or give another --out"});
  }
  const std::string plan_path = path_ + "/plan";
  if (fs::exists(plan_path) && read_file(plan_path) == fingerprint_) return;
  for (const fs::directory_entry& entry : fs::directory_iterator(path_)) {
    if (entry.path().filename() != "lock") fs::remove(entry.path());
  }
  write_file(plan_path, fingerprint_);
}

PartsDirectory::~PartsDirectory() { ::close(lock_); }

std::string PartsDirectory::part_path(uint64_t unit) const {
  char name[32];
  std::snprintf(name, sizeof name, "/part-%06llu", static_cast<unsigned long long>(unit));
  return path_ + name;
}

void PartsDirectory::write(uint64_t unit, const TokenPart& part) const {
  const PartHeader header = {unit,
                             part.documents.size(),
                             part.tokens.size(),
                             part.loss_mask.size(),
                             part.num_short_documents,
                             part.num_repaired_documents,
                             part.num_altered_documents,
                             part.num_empty_records,
                             part.num_bad_records};
  StagedFile file(part_path(unit));
  Sha256 hash;
  for (const std::string_view bytes :
       {kMagic, std::string_view(fingerprint_), bytes_of(&header, 1),
        bytes_of(part.documents.data(), part.documents.size()), bytes_of(part.tokens.data(), part.tokens.size()),
        bytes_of(part.loss_mask.data(), part.loss_mask.size())}) {
    hash.update(bytes);
    file.write(bytes);
  }
  file.write(hash.hex());
  file.commit();
}

std::optional<TokenPart> PartsDirectory::read(uint64_t unit) const {
  if (!fs::exists(part_path(unit))) return std::nullopt;
  const std::string bytes = read_file(part_path(unit));
  const size_t header_begin = kMagic.size() + fingerprint_.size();
  const size_t body_begin = header_begin + sizeof(PartHeader);
  if (bytes.size() < body_begin + kHashBytes) return std::nullopt;
  const std::string_view hashed = std::string_view(bytes).substr(0, bytes.size() - kHashBytes);
  if (!hashed.starts_with(std::string(kMagic) + fingerprint_) || !bytes.ends_with(sha256_hex(hashed)))
    return std::nullopt;
  PartHeader header;
  std::memcpy(&header, bytes.data() + header_begin, sizeof header);
  if (header.unit != unit) return std::nullopt;
  TokenPart part;
  part.documents.resize(header.num_documents);
  part.tokens.resize(header.num_tokens);
  part.num_short_documents = header.num_short_documents;
  part.num_repaired_documents = header.num_repaired_documents;
  part.num_altered_documents = header.num_altered_documents;
  part.num_empty_records = header.num_empty_records;
  part.num_bad_records = header.num_bad_records;
  part.loss_mask.resize(header.num_mask_bytes);
  const size_t document_bytes = header.num_documents * sizeof(TokenPart::Document);
  std::memcpy(part.documents.data(), bytes.data() + body_begin, document_bytes);
  const size_t token_bytes = header.num_tokens * sizeof(uint32_t);
  std::memcpy(part.tokens.data(), bytes.data() + body_begin + document_bytes, token_bytes);
  std::memcpy(part.loss_mask.data(), bytes.data() + body_begin + document_bytes + token_bytes, header.num_mask_bytes);
  return part;
}

void PartsDirectory::remove_all() { fs::remove_all(path_); }

}  // namespace dms
