#include "checkpoints/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "data/staged_file.h"
#include "recipes/strict_json.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors data is read in place: little-endian only");

constexpr uint64_t kPrefixBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr uint64_t kMaxDataBytes = uint64_t{1} << 62;  // so that sums and ATen's strides cannot overflow
constexpr size_t kMaxDimensions = 64;                  // ATen's own limit

// In the reference library's order, which decides the order of tensors in a file.
struct Dtype {
  const char* name;
  uint64_t bits;
  at::ScalarType scalar_type = at::ScalarType::Undefined;  // Undefined: valid in a file, but not loadable here
};
constexpr std::array<Dtype, 22> kDtypes = {{
    {"BOOL", 8},
    {"F4", 4},
    {"F6_E2M3", 6},
    {"F6_E3M2", 6},
    {"U8", 8, at::kByte},
    {"I8", 8, at::kChar},
    {"F8_E5M2", 8},
    {"F8_E4M3", 8},
    {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8},
    {"F8_E8M0", 8},
    {"I16", 16, at::kShort},
    {"U16", 16},
    {"F16", 16, at::kHalf},
    {"BF16", 16, at::kBFloat16},
    {"I32", 32, at::kInt},
    {"U32", 32},
    {"F32", 32, at::kFloat},
    {"C64", 64},
    {"F64", 64, at::kDouble},
    {"I64", 64, at::kLong},
    {"U64", 64},
}};

const Dtype* find_dtype(const std::string& name) {
  for (const Dtype& dtype : kDtypes) {
    if (name == dtype.name) return &dtype;
  }
  return nullptr;
}

const Dtype& dtype_of(const at::Tensor& tensor) {
  for (const Dtype& dtype : kDtypes) {
    if (dtype.scalar_type == tensor.scalar_type()) return dtype;
  }
  TORCH_CHECK(false, "write_safetensors: no safetensors type for ", tensor.scalar_type());
}

// A whole file, read-only, for as long as somebody holds it.  A file that another program shortens meanwhile raises
// SIGBUS on the next access to the lost part; no reader of mapped files can prevent that.
class Mapping {
 public:
  void release_pages() const {
    if (bytes_ != nullptr) ::madvise(const_cast<char*>(bytes_), num_bytes_, MADV_DONTNEED);
  }
  explicit Mapping(const std::string& path) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) throw UserError(path, std::string("cannot be opened: ") + std::strerror(errno));
    struct stat status {};
    std::string problem;
    if (::fstat(descriptor, &status) != 0) {
      problem = std::strerror(errno);
    } else if (!S_ISREG(status.st_mode)) {
      problem = "not a regular file";
    } else if (status.st_size > 0) {
      num_bytes_ = static_cast<uint64_t>(status.st_size);
      void* address = ::mmap(nullptr, num_bytes_, PROT_READ, MAP_SHARED, descriptor, 0);
      if (address == MAP_FAILED) {
        problem = std::string("cannot be mapped: ") + std::strerror(errno);
      } else {
        bytes_ = static_cast<const char*>(address);
      }
    }
    ::close(descriptor);
    if (!problem.empty()) throw UserError(path, problem);
  }
  ~Mapping() {
    if (bytes_ != nullptr) ::munmap(const_cast<char*>(bytes_), num_bytes_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const char* bytes() const { return bytes_; }
  uint64_t num_bytes() const { return num_bytes_; }

 private:
  const char* bytes_ = nullptr;
  uint64_t num_bytes_ = 0;
};

SafetensorsEntry parse_entry(const std::string& path, const std::string& name, const json& value) {
  const auto reject = [&](const std::string& problem, std::vector<std::string> details = {}) {
    throw UserError(path, "tensor " + in_quotes(name) + ": " + problem, std::move(details));
  };
  if (!value.is_object()) reject("is " + shown(value), {"expected {\"dtype\", \"shape\", \"data_offsets\"}"});
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!value.contains(key)) reject(std::string("has no '") + key + "'");
  }
  SafetensorsEntry entry;
  entry.name = name;

  const json& dtype_name = value["dtype"];
  const Dtype* dtype = dtype_name.is_string() ? find_dtype(dtype_name.get<std::string>()) : nullptr;
  if (dtype == nullptr) {
    std::string known;
    for (const Dtype& candidate : kDtypes) known += std::string(known.empty() ? "" : " ") + candidate.name;
    reject("unknown dtype " + shown(dtype_name), {"known: " + known});
  }
  entry.dtype = dtype->name;

  const json& shape = value["shape"];
  if (!shape.is_array()) reject("'shape' is " + shown(shape), {"expected a list of sizes"});
  if (shape.size() > kMaxDimensions) reject("has " + std::to_string(shape.size()) + " dimensions");
  uint64_t num_elements = 1, padded_elements = 1;  // the second counts 0 as 1, as strides do
  for (const json& size : shape) {
    if (!size.is_number_unsigned()) reject("'shape' is " + shown(shape), {"expected sizes of 0 or more"});
    const uint64_t dimension = size.get<uint64_t>();
    if (dimension > kMaxDataBytes / padded_elements) reject("'shape' " + shown(shape) + " is too large");
    padded_elements *= std::max<uint64_t>(dimension, 1);
    num_elements *= dimension;
    entry.shape.push_back(static_cast<int64_t>(dimension));
  }
  if (num_elements > kMaxDataBytes / dtype->bits) reject("'shape' " + shown(shape) + " is too large");
  const uint64_t num_bits = num_elements * dtype->bits;
  if (num_bits % 8 != 0) reject(describe_tensor(entry.dtype, entry.shape) + " does not fill whole bytes");

  const json& offsets = value["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    reject("'data_offsets' is " + shown(offsets), {"expected [begin, end]"});
  }
  entry.begin = offsets[0].get<uint64_t>();
  entry.end = offsets[1].get<uint64_t>();
  if (entry.end < entry.begin) reject("'data_offsets' " + shown(offsets) + " ends before it begins");
  if (entry.end > kMaxDataBytes) reject("'data_offsets' " + shown(offsets) + " is too large");
  if (entry.end - entry.begin != num_bits / 8) {
    reject("'data_offsets' " + shown(offsets) + " spans " + std::to_string(entry.end - entry.begin) + " bytes",
           {describe_tensor(entry.dtype, entry.shape) + " takes " + std::to_string(num_bits / 8)});
  }
  return entry;
}

// Tensors follow one another from the first data byte to the end of the file, without holes or overlap.
void check_layout(const std::string& path, const std::vector<SafetensorsEntry>& entries, uint64_t data_start,
                  uint64_t file_bytes) {
  uint64_t expected_begin = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.begin != expected_begin) {
      throw UserError(path,
                      "tensor " + in_quotes(entry.name) + " begins at data byte " + std::to_string(entry.begin) +
                          (entry.begin < expected_begin ? ", inside the tensor before it" : ", after a hole"),
                      {"expected " + std::to_string(expected_begin) + ", where the tensor before it ends"});
    }
    expected_begin = entry.end;
  }
  for (const SafetensorsEntry& entry : entries) {
    const uint64_t end = data_start + entry.end;
    if (end > file_bytes) {
      throw UserError(path,
                      in_quotes(entry.name) + " (" + describe_tensor(entry.dtype, entry.shape) +
                          ") should end at byte " + std::to_string(end) + ",",
                      {"but the file ends at " + std::to_string(file_bytes) + " (" +
                           std::to_string(data_start + expected_begin - file_bytes) + " bytes short)",
                       "the file looks truncated: compare its size with the source and copy it again"});
    }
  }
  if (data_start + expected_begin < file_bytes) {
    throw UserError(path,
                    "the last tensor ends at byte " + std::to_string(data_start + expected_begin) +
                        ", but the file at byte " + std::to_string(file_bytes),
                    {"something was appended: copy the file again"});
  }
}

class MappedFile : public SafetensorsFile {
 public:
  explicit MappedFile(const std::string& path) : path_(path), mapping_(std::make_shared<Mapping>(path)) {
    const uint64_t file_bytes = mapping_->num_bytes();
    if (file_bytes < kPrefixBytes) {
      throw UserError(path, "is " + std::to_string(file_bytes) + " bytes long: too short for a safetensors file",
                      {"the file looks truncated: compare its size with the source and copy it again"});
    }
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, mapping_->bytes(), kPrefixBytes);
    if (header_bytes > kMaxHeaderBytes) {
      throw UserError(path, "announces a header of " + std::to_string(header_bytes) + " bytes",
                      {"expected at most " + std::to_string(kMaxHeaderBytes) + ": not a safetensors file"});
    }
    if (header_bytes > file_bytes - kPrefixBytes) {
      throw UserError(path, "the header should end at byte " + std::to_string(kPrefixBytes + header_bytes) + ",",
                      {"but the file ends at " + std::to_string(file_bytes),
                       "the file looks truncated: compare its size with the source and copy it again"});
    }
    data_start_ = kPrefixBytes + header_bytes;
    parse_header(std::string_view(mapping_->bytes() + kPrefixBytes, header_bytes));
    std::sort(entries_.begin(), entries_.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
      return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
    });
    check_layout(path, entries_, data_start_, file_bytes);
    for (size_t i = 0; i < entries_.size(); ++i) index_[entries_[i].name] = i;
  }

  const std::string& path() const override { return path_; }
  const std::vector<SafetensorsEntry>& entries() const override { return entries_; }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }

  const SafetensorsEntry* find(const std::string& name) const override {
    const auto it = index_.find(name);
    return it == index_.end() ? nullptr : &entries_[it->second];
  }

  void release_pages() const override { mapping_->release_pages(); }
  at::Tensor tensor(const std::string& name) const override {
    const SafetensorsEntry* entry = find(name);
    if (entry == nullptr) throw UserError(path_, "has no tensor " + in_quotes(name));
    const at::ScalarType type = find_dtype(entry->dtype)->scalar_type;
    if (type == at::ScalarType::Undefined) {
      throw UserError(path_, "tensor " + in_quotes(name) + " is stored as " + entry->dtype,
                      {"expected F32, F16 or BF16 (integers and F64 are read too)"});
    }
    const char* bytes = mapping_->bytes() + data_start_ + entry->begin;
    // Headers of older writers leave the data unaligned: such tensors are copied, never read through a cast pointer.
    if (reinterpret_cast<uintptr_t>(bytes) % c10::elementSize(type) == 0) {
      return at::from_blob(
          const_cast<char*>(bytes), entry->shape, [mapping = mapping_](void*) {}, type);
    }
    at::Tensor copy = at::empty(entry->shape, type);
    std::memcpy(copy.data_ptr(), bytes, entry->end - entry->begin);
    return copy;
  }

 private:
  void parse_header(std::string_view text) {
    if (!text.starts_with('{')) {
      throw UserError(path_, "the header does not begin with '{': not a safetensors file");
    }
    const json header = parse_strict_json(text, path_ + " (header)");
    for (const auto& item : header.items()) {
      if (item.key() != "__metadata__") {
        entries_.push_back(parse_entry(path_, item.key(), item.value()));
        continue;
      }
      if (item.value().is_null()) continue;
      if (!item.value().is_object()) {
        throw UserError(path_, "'__metadata__' is " + shown(item.value()), {"expected an object of strings"});
      }
      for (const auto& field : item.value().items()) {
        if (!field.value().is_string()) {
          throw UserError(path_, "'__metadata__' key " + in_quotes(field.key()) + " is " + shown(field.value()),
                          {"expected a string"});
        }
        metadata_[field.key()] = field.value().get<std::string>();
      }
    }
  }

  std::string path_;
  std::shared_ptr<Mapping> mapping_;
  uint64_t data_start_ = 0;
  std::vector<SafetensorsEntry> entries_;
  std::unordered_map<std::string, size_t> index_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace

std::string describe_tensor(const std::string& dtype, at::IntArrayRef shape) {
  std::string text = dtype + " [";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

std::shared_ptr<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  return std::make_shared<MappedFile>(path);
}

void write_safetensors(const std::string& path, const NamedTensors& tensors,
                       std::map<std::string, std::string> metadata) {
  metadata.emplace("format", "pt");  // readers older than 0.4 refuse files that do not say so
  std::vector<const std::pair<std::string, at::Tensor>*> order;
  for (const auto& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    const Dtype *dtype_a = &dtype_of(a->second), *dtype_b = &dtype_of(b->second);
    return dtype_a != dtype_b ? dtype_a > dtype_b : a->first < b->first;
  });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  header["__metadata__"] = metadata;
  uint64_t end = 0;
  for (const auto* item : order) {
    const auto& [name, tensor] = *item;
    TORCH_CHECK(!header.contains(name), "write_safetensors: two tensors named ", name);
    const uint64_t begin = end;
    end += static_cast<uint64_t>(tensor.numel()) * tensor.element_size();
    header[name] = {{"dtype", dtype_of(tensor).name}, {"shape", tensor.sizes().vec()}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // data aligned for every type
  const uint64_t header_bytes = text.size();

  StagedFile file(path);
  file.write(std::string_view(reinterpret_cast<const char*>(&header_bytes), kPrefixBytes));
  file.write(text);
  for (const auto* item : order) {
    const at::Tensor values = item->second.detach().to(at::kCPU).contiguous();
    file.write(std::string_view(static_cast<const char*>(values.data_ptr()), values.nbytes()));
  }
  file.commit();
}

}  // namespace dms
