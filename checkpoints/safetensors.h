// The safetensors file format: strict header checks, memory-mapped reading, and a writer.
// Format: 8 bytes little-endian header length, JSON header, raw row-major data (huggingface/safetensors,
// safetensors/src/tensor.rs).  A file is accepted when that library accepts it and every size fits in 62 bits.
#pragma once

#include <ATen/ATen.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace dms {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // as in the header: F32, BF16, ...
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes, relative to the first data byte
};

// "BF16 [12288, 4096]", as messages show a tensor.
std::string describe_tensor(const std::string& dtype, at::IntArrayRef shape);

class SafetensorsFile {
 public:
  // Maps the file and validates the whole header.  Throws UserError (malformed, truncated, hostile).
  static std::shared_ptr<SafetensorsFile> open(const std::string& path);
  virtual ~SafetensorsFile() = default;

  virtual const std::string& path() const = 0;
  virtual const std::vector<SafetensorsEntry>& entries() const = 0;         // in the order of their data
  virtual const SafetensorsEntry* find(const std::string& name) const = 0;  // nullptr when absent
  virtual const std::map<std::string, std::string>& metadata() const = 0;
  // A tensor that views the mapping where alignment allows (the mapping lives as long as the tensor), else a copy.
  // The mapping is read-only memory: writing to the tensor kills the process, so clone() what is to be changed.
  // Throws UserError when absent or of a dtype other than F64 F32 F16 BF16 I64 I32 I16 I8 U8.
  virtual at::Tensor tensor(const std::string& name) const = 0;
  // Takes the mapping's pages out of this process: tensors stay valid, their bytes come back when they are looked at.
  virtual void release_pages() const = 0;
};

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// Writes through StagedFile: PATH is either absent or complete.  `metadata` gains {"format": "pt"} unless it names a
// format.  Tensors are laid out as the reference library does (wider types first, then by name), on any device.
void write_safetensors(const std::string& path, const NamedTensors& tensors,
                       std::map<std::string, std::string> metadata = {});

}  // namespace dms
