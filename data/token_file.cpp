#include "data/token_file.h"

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "data/sha256.h"
#include "data/token_file_hdf5.h"
#include "data/token_file_seal.h"
#include "recipes/user_error.h"

namespace dms {
namespace {

constexpr hsize_t kScanTokens = 1 << 20;

const std::vector<std::string> kDamaged = {
    "the file looks damaged or cut short: copy it again or remake it with 'dms prepare'"};

[[noreturn]] void throw_damaged(const std::string& path, const std::string& what) {
  throw UserError(path, what + " (HDF5: " + hdf5_error() + ")", kDamaged);
}

bool has_link(hid_t file, const std::string& name) {
  for (size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1)) {
    if (H5Lexists(file, name.substr(0, slash).c_str(), H5P_DEFAULT) <= 0) return false;
  }
  return H5Lexists(file, name.c_str(), H5P_DEFAULT) > 0;
}

// One-dimensional data inside this very file.  Links and storage that lead to other files are refused: a data set from
// a stranger must not make us read somewhere else.
class Dataset {
 public:
  Dataset(hid_t file, const std::string& name, const std::string& path) : name_(name), path_(path) {
    for (size_t slash = name.find('/');; slash = name.find('/', slash + 1)) {
      H5L_info_t link;
      if (H5Lget_info(file, name.substr(0, slash).c_str(), &link, H5P_DEFAULT) < 0) {
        throw UserError(path, "has no dataset '/" + name + "'", kDamaged);
      }
      if (link.type != H5L_TYPE_HARD)
        throw UserError(path, "'/" + name + "' is a soft or external link; not supported");
      if (slash == std::string::npos) break;
    }
    id_ = Hdf5Id(H5Dopen2(file, name.c_str(), H5P_DEFAULT));
    if (!id_.valid()) throw_damaged(path, "'/" + name + "' cannot be opened as a dataset");
    Hdf5Id space(H5Dget_space(id_));
    if (!space.valid() || H5Sget_simple_extent_ndims(space) != 1) {
      throw UserError(path, "'/" + name + "' must be one-dimensional");
    }
    H5Sget_simple_extent_dims(space, &size_, nullptr);
    type_ = Hdf5Id(H5Dget_type(id_));
    check_storage();
  }

  hsize_t size() const { return size_; }
  bool is_integer() const { return H5Tget_class(type_) == H5T_INTEGER; }
  size_t element_bytes() const { return H5Tget_size(type_); }
  bool is_unsigned_16_or_32() const {
    return is_integer() && H5Tget_sign(type_) == H5T_SGN_NONE && (element_bytes() == 2 || element_bytes() == 4);
  }

  // Converted from any integer type; unsigned values past int64 are clipped to its largest value.
  template <typename T>
  std::vector<T> read(hsize_t begin, hsize_t count) const {
    static_assert(std::is_same_v<T, int64_t> || std::is_same_v<T, uint8_t>);
    std::vector<T> values(count);
    if (count == 0) return values;
    Hdf5Id file_space(H5Dget_space(id_));
    Hdf5Id memory_space(H5Screate_simple(1, &count, nullptr));
    H5Sselect_hyperslab(file_space, H5S_SELECT_SET, &begin, nullptr, &count, nullptr);
    const hid_t type = std::is_same_v<T, int64_t> ? H5T_NATIVE_INT64 : H5T_NATIVE_UINT8;
    if (H5Dread(id_, type, memory_space, file_space, H5P_DEFAULT, values.data()) < 0) {
      throw_damaged(path_, "'/" + name_ + "' cannot be read at elements " + std::to_string(begin) + ".." +
                               std::to_string(begin + count));
    }
    return values;
  }

  // Of variable-length strings, as our writer and h5py make them.
  std::vector<std::string> read_text() const {
    if (H5Tget_class(type_) != H5T_STRING || H5Tis_variable_str(type_) <= 0) {
      throw UserError(path_, "'/" + name_ + "' must hold variable-length strings", kDamaged);
    }
    std::vector<char*> elements(size_);
    if (H5Dread(id_, type_, H5S_ALL, H5S_ALL, H5P_DEFAULT, elements.data()) < 0) {
      throw_damaged(path_, "'/" + name_ + "' cannot be read");
    }
    std::vector<std::string> texts;
    for (const char* element : elements) texts.emplace_back(element == nullptr ? "" : element);
    Hdf5Id space(H5Dget_space(id_));
    H5Dvlen_reclaim(type_, space, H5P_DEFAULT, elements.data());
    return texts;
  }

 private:
  void check_storage() const {
    Hdf5Id properties(H5Dget_create_plist(id_));
    if (!properties.valid()) throw_damaged(path_, "'/" + name_ + "' has no readable properties");
    if (H5Pget_layout(properties) == H5D_VIRTUAL || H5Pget_external_count(properties) > 0) {
      throw UserError(path_, "'/" + name_ + "' keeps its data in other files; not supported");
    }
    // Deflate packs at most 1032 to 1: a dataset that claims more elements than its bytes can hold is damaged or
    // hostile, and must be refused before memory is taken for it.
    constexpr hsize_t kLargestRatio = 1100, kSlackBytes = 1 << 20;
    const hsize_t stored_bytes = H5Dget_storage_size(id_);
    if (size_ / kLargestRatio > (stored_bytes + kSlackBytes) / std::max<size_t>(1, element_bytes())) {
      throw UserError(path_,
                      "'/" + name_ + "' claims " + std::to_string(size_) + " elements but stores only " +
                          std::to_string(stored_bytes) + " bytes",
                      kDamaged);
    }
  }

  std::string name_, path_;
  Hdf5Id id_, type_;
  hsize_t size_ = 0;
};

// Root attributes of the kinds that our writer and h5py write: integers and strings, scalar.
nlohmann::json read_attribute(hid_t file, const char* name) {
  Hdf5Id attribute(H5Aopen(file, name, H5P_DEFAULT));
  if (!attribute.valid()) return nullptr;
  Hdf5Id type(H5Aget_type(attribute)), space(H5Aget_space(attribute));
  if (H5Sget_simple_extent_npoints(space) != 1) return nullptr;
  if (H5Tget_class(type) == H5T_INTEGER) {
    int64_t value = 0;
    if (H5Aread(attribute, H5T_NATIVE_INT64, &value) < 0) return nullptr;
    return value;
  }
  if (H5Tget_class(type) != H5T_STRING) return nullptr;
  if (H5Tis_variable_str(type) > 0) {
    char* text = nullptr;
    if (H5Aread(attribute, type, &text) < 0 || text == nullptr) return nullptr;
    const std::string value = text;
    H5free_memory(text);
    return value;
  }
  std::string value(H5Tget_size(type), '\0');
  if (value.size() > 65536 || H5Aread(attribute, type, value.data()) < 0) return nullptr;
  return value.substr(0, value.find('\0'));
}

// By name, not by iteration: HDF5 1.10.8 crashes when it iterates over a damaged attribute.
nlohmann::json read_attributes(hid_t file) {
  nlohmann::json attributes = nlohmann::json::object();
  for (const char* name :
       {"format", "version", "complete", "created_by", "created_utc", "vocab_size", "tokenizer_sha256",
        "tokenizer_name", "chat_template_sha256", "template", "date_string", "bos_token_id", "eos_token_id",
        "pad_token_id", "num_tokens", "num_documents", "tokens_sha256", "options_json"}) {
    if (H5Aexists(file, name) > 0) attributes[name] = read_attribute(file, name);
  }
  return attributes;
}

class Hdf5TokenFile : public TokenFile {
 public:
  explicit Hdf5TokenFile(const std::string& path) : path_(path) {
    std::lock_guard lock(hdf5_mutex());
    open_file();
    attributes_ = read_attributes(file_);
    // Both names, so that one damaged name does not turn our file into somebody else's.
    const bool foreign = !attributes_.contains("format") && !attributes_.contains("tokens_sha256");
    if (foreign && !has_link(file_, "tokens")) {
      throw UserError(path_, "is an HDF5 file but not a token file: no attribute 'format' and no dataset 'tokens'",
                      {"make one with 'dms prepare'"});
    }
    if (!foreign) check_header();
    tokens_ = std::make_unique<Dataset>(file_, "tokens", path_);
    if (tokens_->size() == 0) throw UserError(path_, "holds no tokens");
    if (tokens_->size() > static_cast<hsize_t>(std::numeric_limits<int64_t>::max())) {
      throw UserError(path_, "claims an impossible number of tokens", kDamaged);
    }
    foreign ? read_foreign() : read_own();
    if (has_link(file_, "loss_mask")) {
      loss_mask_ = std::make_unique<Dataset>(file_, "loss_mask", path_);
      if (!loss_mask_->is_integer() || loss_mask_->size() != tokens_->size()) {
        throw UserError(path_, "'/loss_mask' must hold one integer per token");
      }
    }
  }

  const std::string& path() const override { return path_; }
  int64_t num_tokens() const override { return static_cast<int64_t>(tokens_->size()); }
  int64_t vocab_size() const override { return vocab_size_; }
  const std::string& tokenizer_sha256() const override { return tokenizer_sha256_; }
  const std::vector<int64_t>& document_offsets() const override { return offsets_; }
  std::string attributes_json() const override { return attributes_.dump(); }

  std::vector<std::string> source_names() const override {
    std::lock_guard lock(hdf5_mutex());
    if (!attributes_.contains("format") || !has_link(file_, "sources/name")) return {};
    return Dataset(file_, "sources/name", path_).read_text();
  }

  std::vector<int32_t> tokens(int64_t begin, int64_t end) const override {
    check_range(begin, end);
    std::lock_guard lock(hdf5_mutex());
    const std::vector<int64_t> ids = read_ids(static_cast<hsize_t>(begin), static_cast<hsize_t>(end - begin));
    return {ids.begin(), ids.end()};
  }

  std::vector<uint8_t> loss_mask(int64_t begin, int64_t end) const override {
    check_range(begin, end);
    if (!loss_mask_) return {};
    std::lock_guard lock(hdf5_mutex());
    return loss_mask_->read<uint8_t>(static_cast<hsize_t>(begin), static_cast<hsize_t>(end - begin));
  }

 private:
  void open_file() {
    if (!std::filesystem::exists(path_)) {
      throw UserError(path_, "does not exist", {"a token file is expected: make one with 'dms prepare'"});
    }
    if (std::filesystem::is_directory(path_)) throw UserError(path_, "is a directory; a token file is expected");
    check_seal(path_);
    Hdf5Id access(H5Pcreate(H5P_FILE_ACCESS));
    H5Pset_file_locking(access, false, true);  // complete files never change, and some file systems cannot lock
    file_ = Hdf5Id(H5Fopen(path_.c_str(), H5F_ACC_RDONLY, access));
    if (file_.valid()) return;
    const std::string reason = hdf5_error();
    const bool is_hdf5 = H5Fis_hdf5(path_.c_str()) > 0;
    H5Eclear2(H5E_DEFAULT);
    if (!is_hdf5) {
      throw UserError(path_, "is not an HDF5 token file (HDF5: " + reason + ")",
                      {"make one from text with 'dms prepare'"});
    }
    throw UserError(path_, "cannot be opened (HDF5: " + reason + ")", kDamaged);
  }

  int64_t integer_attribute(const char* name) const {
    const auto found = attributes_.find(name);
    if (found == attributes_.end() || !found->is_number_integer()) {
      throw UserError(path_, std::string("attribute '") + name + "' is missing or is not an integer", kDamaged);
    }
    return found->get<int64_t>();
  }

  std::string string_attribute(const char* name) const {
    const auto found = attributes_.find(name);
    if (found == attributes_.end() || !found->is_string()) {
      throw UserError(path_, std::string("attribute '") + name + "' is missing or is not a string", kDamaged);
    }
    return found->get<std::string>();
  }

  void check_header() {
    if (const std::string format = string_attribute("format"); format != "dms-tokens") {
      throw UserError(path_, "format is '" + format + "'; 'dms-tokens' is expected");
    }
    if (const int64_t version = integer_attribute("version"); version != 1) {
      throw UserError(path_, "format version is " + std::to_string(version) + "; this program reads version 1",
                      {"remake the file with this program's 'dms prepare'"});
    }
    if (integer_attribute("complete") != 1) {
      throw UserError(path_, "was never completed", {"run 'dms prepare' again: it resumes where it stopped"});
    }
    vocab_size_ = integer_attribute("vocab_size");
    if (vocab_size_ < 1 || vocab_size_ > std::numeric_limits<int32_t>::max()) {
      throw UserError(path_, "vocab_size is " + std::to_string(vocab_size_), kDamaged);
    }
    tokenizer_sha256_ = string_attribute("tokenizer_sha256");
  }

  void read_own() {
    if (!tokens_->is_unsigned_16_or_32()) throw UserError(path_, "'/tokens' must be uint32 or uint16");
    check_count("num_tokens", tokens_->size());
    read_offsets("documents/offsets");
    const hsize_t num_documents = offsets_.size() - 1;
    check_count("num_documents", num_documents);
    for (const char* name : {"documents/source", "documents/line"}) {
      if (Dataset(file_, name, path_).size() != num_documents) {
        throw UserError(path_, std::string("'/") + name + "' must have one entry per document", kDamaged);
      }
    }
    const std::string found = scan();
    if (const std::string expected = string_attribute("tokens_sha256"); found != expected) {
      throw UserError(path_, "the SHA-256 of its tokens is " + found + ", but " + expected + " was written", kDamaged);
    }
  }

  void read_foreign() {
    if (!tokens_->is_integer()) throw UserError(path_, "'/tokens' must hold integers");
    if (has_link(file_, "offsets")) {
      read_offsets("offsets");
    } else {
      offsets_ = {0, num_tokens()};
    }
    vocab_size_ = std::numeric_limits<int32_t>::max();
    scan();
    vocab_size_ = largest_id_ + 1;
    std::cerr << "warning: " << path_ << ": not written by 'dms prepare'; its tokenizer is unknown, so make sure that "
              << "its ids (up to " << largest_id_ << ") are those of your model's tokenizer\n";
  }

  void check_count(const char* attribute, hsize_t found) const {
    if (const int64_t expected = integer_attribute(attribute);
        expected < 0 || static_cast<hsize_t>(expected) != found) {
      throw UserError(
          path_,
          "holds " + std::to_string(found) + " where attribute '" + attribute + "' says " + std::to_string(expected),
          kDamaged);
    }
  }

  void read_offsets(const char* name) {
    const Dataset dataset(file_, name, path_);
    if (!dataset.is_integer() || dataset.size() < 2) {
      throw UserError(path_, std::string("'/") + name + "' must hold at least two integers", kDamaged);
    }
    offsets_ = dataset.read<int64_t>(0, dataset.size());
    if (offsets_.front() != 0 || offsets_.back() != num_tokens() || !std::is_sorted(offsets_.begin(), offsets_.end())) {
      throw UserError(
          path_,
          std::string("'/") + name + "' must rise from 0 to the number of tokens, " + std::to_string(num_tokens()),
          kDamaged);
    }
  }

  // Reads everything once, so that a bad id or a damaged chunk shows now and not hours into training.  Returns the
  // SHA-256 of the stored elements (meaningful for uint16 and uint32).
  std::string scan() {
    Sha256 hash;
    const size_t element_bytes = tokens_->element_bytes();
    std::string bytes;
    for (hsize_t begin = 0; begin < tokens_->size(); begin += kScanTokens) {
      const std::vector<int64_t> ids = read_ids(begin, std::min(kScanTokens, tokens_->size() - begin));
      bytes.clear();
      for (const int64_t id : ids) {
        largest_id_ = std::max(largest_id_, id);
        for (size_t k = 0; k < element_bytes; ++k) bytes += static_cast<char>(id >> (8 * k) & 0xff);
      }
      hash.update(bytes);
    }
    return hash.hex();
  }

  std::vector<int64_t> read_ids(hsize_t begin, hsize_t count) const {
    std::vector<int64_t> ids = tokens_->read<int64_t>(begin, count);
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] < 0 || ids[i] >= vocab_size_) {
        throw UserError(path_, "token " + std::to_string(begin + i) + " has id " + std::to_string(ids[i]) +
                                   ", outside the vocabulary of " + std::to_string(vocab_size_));
      }
    }
    return ids;
  }

  void check_range(int64_t begin, int64_t end) const {
    if (begin < 0 || begin > end || end > num_tokens()) {
      throw std::out_of_range("TokenFile: tokens [" + std::to_string(begin) + ", " + std::to_string(end) + ") of " +
                              std::to_string(num_tokens()));
    }
  }

  std::string path_;
  Hdf5Id file_;
  nlohmann::json attributes_;
  std::unique_ptr<Dataset> tokens_, loss_mask_;
  std::vector<int64_t> offsets_;
  int64_t vocab_size_ = 0;
  int64_t largest_id_ = 0;
  std::string tokenizer_sha256_;
};

}  // namespace

std::shared_ptr<TokenFile> TokenFile::open(const std::string& path) { return std::make_shared<Hdf5TokenFile>(path); }

}  // namespace dms
