#include "data/token_file_writer.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <ctime>
#include <stdexcept>

#include "data/staged_file.h"
#include "data/token_file_hdf5.h"
#include "data/token_file_seal.h"
#include "recipes/user_error.h"

namespace dms {
namespace {

constexpr hsize_t kTokenChunk = 65536;
constexpr hsize_t kDocumentChunk = 8192;
constexpr unsigned kDeflateLevel = 4;

enum class Filters { kDeflate, kShuffleDeflate, kShuffleDeflateChecksum };

std::string now_utc() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

// HDF5 reports failed writes by return code only; errno is what the system call beneath left.
template <typename Code>
Code checked(Code code, const std::string& path) {
  if (code < 0) {
    const int error = errno != 0 ? errno : EIO;
    hdf5_error();
    throw IoError(path, "write", error);
  }
  return code;
}

// A one-dimensional dataset that grows; elements are buffered up to one chunk so that each is compressed once.
template <typename T>
class Column {
 public:
  Column() = default;
  Column(hid_t file, const char* name, hid_t file_type, hid_t memory_type, hsize_t chunk, Filters filters,
         const std::string& path)
      : memory_type_(memory_type), chunk_(chunk), path_(path) {
    const hsize_t zero = 0, unlimited = H5S_UNLIMITED;
    Hdf5Id space(checked(H5Screate_simple(1, &zero, &unlimited), path));
    Hdf5Id properties(checked(H5Pcreate(H5P_DATASET_CREATE), path));
    checked(H5Pset_chunk(properties, 1, &chunk), path);
    if (filters != Filters::kDeflate) checked(H5Pset_shuffle(properties), path);
    checked(H5Pset_deflate(properties, kDeflateLevel), path);
    if (filters == Filters::kShuffleDeflateChecksum) checked(H5Pset_fletcher32(properties), path);
    dataset_ = Hdf5Id(checked(H5Dcreate2(file, name, file_type, space, H5P_DEFAULT, properties, H5P_DEFAULT), path));
  }

  void append(std::span<const T> values) {
    while (!values.empty()) {
      const size_t count = std::min(values.size(), static_cast<size_t>(chunk_) - buffer_.size());
      buffer_.insert(buffer_.end(), values.begin(), values.begin() + static_cast<std::ptrdiff_t>(count));
      values = values.subspan(count);
      if (buffer_.size() == chunk_) flush();
    }
  }

  void flush() {
    if (buffer_.empty()) return;
    const hsize_t begin = size_, count = buffer_.size();
    size_ += count;
    errno = 0;
    checked(H5Dset_extent(dataset_, &size_), path_);
    Hdf5Id file_space(checked(H5Dget_space(dataset_), path_));
    checked(H5Sselect_hyperslab(file_space, H5S_SELECT_SET, &begin, nullptr, &count, nullptr), path_);
    Hdf5Id memory_space(checked(H5Screate_simple(1, &count, nullptr), path_));
    checked(H5Dwrite(dataset_, memory_type_, memory_space, file_space, H5P_DEFAULT, buffer_.data()), path_);
    buffer_.clear();
  }

 private:
  Hdf5Id dataset_;
  hid_t memory_type_ = H5I_INVALID_HID;
  hsize_t chunk_ = 0, size_ = 0;
  std::vector<T> buffer_;
  std::string path_;
};

Hdf5Id utf8_string_type(const std::string& path) {
  Hdf5Id type(checked(H5Tcopy(H5T_C_S1), path));
  checked(H5Tset_size(type, H5T_VARIABLE), path);
  checked(H5Tset_cset(type, H5T_CSET_UTF8), path);
  return type;
}

void write_attribute(hid_t file, const char* name, hid_t file_type, hid_t memory_type, const void* value,
                     const std::string& path) {
  Hdf5Id space(checked(H5Screate(H5S_SCALAR), path));
  Hdf5Id attribute(checked(H5Acreate2(file, name, file_type, space, H5P_DEFAULT, H5P_DEFAULT), path));
  checked(H5Awrite(attribute, memory_type, value), path);
}

void write_attribute(hid_t file, const char* name, int64_t value, const std::string& path) {
  write_attribute(file, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value, path);
}

void write_attribute(hid_t file, const char* name, const std::string& value, const std::string& path) {
  Hdf5Id type = utf8_string_type(path);
  const char* text = value.c_str();
  write_attribute(file, name, type, type, &text, path);
}

// Small tables are stored whole: contiguous, no filters.
void write_table(hid_t file, const char* name, hid_t file_type, hid_t memory_type, hsize_t count, const void* values,
                 const std::string& path) {
  Hdf5Id space(checked(H5Screate_simple(1, &count, nullptr), path));
  Hdf5Id dataset(checked(H5Dcreate2(file, name, file_type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), path));
  if (count > 0) checked(H5Dwrite(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values), path);
}

void make_group(hid_t file, const char* name, const std::string& path) {
  Hdf5Id group(checked(H5Gcreate2(file, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), path));
}

}  // namespace

struct TokenFileWriter::State {
  std::string path;
  TokenFileInfo info;
  StagedFile staged;
  Hdf5Id file;
  Column<uint32_t> tokens, source;
  Column<uint64_t> offsets, line;
  Column<uint8_t> loss_mask;
  uint64_t num_tokens = 0, num_documents = 0;
  Sha256 tokens_hash;

  State(std::string final_path, TokenFileInfo file_info)
      : path(std::move(final_path)), info(std::move(file_info)), staged(path) {}

  void create() {
    Hdf5Id access(checked(H5Pcreate(H5P_FILE_ACCESS), path));
    checked(H5Pset_libver_bounds(access, H5F_LIBVER_EARLIEST, H5F_LIBVER_V110), path);
    // Our partial name is ours alone, and some network file systems cannot lock.
    checked(H5Pset_file_locking(access, false, true), path);
    file = Hdf5Id(checked(H5Fcreate(staged.partial_path().c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access), path));
    const int8_t complete = 0;
    write_attribute(file, "complete", H5T_STD_I8LE, H5T_NATIVE_INT8, &complete, path);
    tokens = {file, "tokens", H5T_STD_U32LE, H5T_NATIVE_UINT32, kTokenChunk, Filters::kShuffleDeflateChecksum, path};
    if (info.has_loss_mask) {
      loss_mask = {file, "loss_mask", H5T_STD_U8LE, H5T_NATIVE_UINT8, kTokenChunk, Filters::kShuffleDeflate, path};
    }
    make_group(file, "documents", path);
    offsets = {file, "documents/offsets", H5T_STD_U64LE, H5T_NATIVE_UINT64, kDocumentChunk, Filters::kDeflate, path};
    source = {file, "documents/source", H5T_STD_U32LE, H5T_NATIVE_UINT32, kDocumentChunk, Filters::kDeflate, path};
    line = {file, "documents/line", H5T_STD_U64LE, H5T_NATIVE_UINT64, kDocumentChunk, Filters::kDeflate, path};
    offsets.append(std::span(&num_tokens, 1));
  }

  void write_sources() {
    make_group(file, "sources", path);
    std::vector<const char*> names, hashes;
    std::vector<uint64_t> sizes;
    for (const TokenSource& entry : info.sources) {
      names.push_back(entry.name.c_str());
      hashes.push_back(entry.sha256.c_str());
      sizes.push_back(entry.size_bytes);
    }
    Hdf5Id text = utf8_string_type(path);
    write_table(file, "sources/name", text, text, names.size(), names.data(), path);
    write_table(file, "sources/sha256", text, text, hashes.size(), hashes.data(), path);
    write_table(file, "sources/size", H5T_STD_U64LE, H5T_NATIVE_UINT64, sizes.size(), sizes.data(), path);
  }

  void write_attributes() {
    write_attribute(file, "format", std::string("dms-tokens"), path);
    write_attribute(file, "version", int64_t{1}, path);
    write_attribute(file, "created_by", info.created_by, path);
    write_attribute(file, "created_utc", now_utc(), path);
    write_attribute(file, "vocab_size", info.vocab_size, path);
    write_attribute(file, "tokenizer_sha256", info.tokenizer_sha256, path);
    write_attribute(file, "tokenizer_name", info.tokenizer_name, path);
    write_attribute(file, "chat_template_sha256", info.chat_template_sha256, path);
    write_attribute(file, "template", info.template_name, path);
    write_attribute(file, "date_string", info.date_string, path);
    write_attribute(file, "bos_token_id", int64_t{info.bos_token_id}, path);
    write_attribute(file, "eos_token_id", int64_t{info.eos_token_id}, path);
    write_attribute(file, "pad_token_id", int64_t{info.pad_token_id}, path);
    write_attribute(file, "num_tokens", static_cast<int64_t>(num_tokens), path);
    write_attribute(file, "num_documents", static_cast<int64_t>(num_documents), path);
    write_attribute(file, "tokens_sha256", tokens_hash.hex(), path);
    write_attribute(file, "options_json", info.options_json, path);
    const int8_t complete = 1;
    Hdf5Id attribute(checked(H5Aopen(file, "complete", H5P_DEFAULT), path));
    checked(H5Awrite(attribute, H5T_NATIVE_INT8, &complete), path);
  }
};

TokenFileWriter::TokenFileWriter(std::string path, TokenFileInfo info)
    : state_(std::make_unique<State>(std::move(path), std::move(info))) {
  std::lock_guard lock(hdf5_mutex());
  state_->create();
}

TokenFileWriter::~TokenFileWriter() = default;

void TokenFileWriter::add_document(std::span<const uint32_t> tokens, uint32_t source, uint64_t line,
                                   std::span<const uint8_t> loss_mask) {
  if (loss_mask.size() != (state_->info.has_loss_mask ? tokens.size() : 0) || source >= state_->info.sources.size()) {
    throw std::logic_error("TokenFileWriter::add_document: loss mask or source does not fit the file's description");
  }
  for (const uint32_t id : tokens) {
    if (id >= static_cast<uint64_t>(state_->info.vocab_size)) {
      throw std::logic_error("TokenFileWriter::add_document: token id " + std::to_string(id) +
                             " outside the vocabulary");
    }
  }
  static_assert(std::endian::native == std::endian::little, "tokens_sha256 is over little-endian elements");
  state_->tokens_hash.update({reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes()});
  state_->num_tokens += tokens.size();
  state_->num_documents += 1;

  std::lock_guard lock(hdf5_mutex());
  state_->tokens.append(tokens);
  if (state_->info.has_loss_mask) state_->loss_mask.append(loss_mask);
  state_->offsets.append(std::span(&state_->num_tokens, 1));
  state_->source.append(std::span(&source, 1));
  state_->line.append(std::span(&line, 1));
}

void TokenFileWriter::finish() {
  State& state = *state_;
  if (state.num_tokens == 0) throw UserError(state.path, "would hold no token: the inputs have no text to train on");
  {
    std::lock_guard lock(hdf5_mutex());
    state.tokens.flush();
    state.offsets.flush();
    state.source.flush();
    state.line.flush();
    if (state.info.has_loss_mask) state.loss_mask.flush();
    state.write_sources();
    state.write_attributes();
    errno = 0;
    state.tokens = {};
    state.offsets = {};
    state.source = {};
    state.line = {};
    state.loss_mask = {};
    if (!state.file.close()) checked(-1, state.path);
  }
  state.staged.write(seal_of(state.staged.partial_path()));
  state.staged.commit();
}

int64_t TokenFileWriter::num_tokens() const { return static_cast<int64_t>(state_->num_tokens); }
int64_t TokenFileWriter::num_documents() const { return static_cast<int64_t>(state_->num_documents); }

}  // namespace dms
