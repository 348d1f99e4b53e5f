// What the fuzz targets share: wrong input ends in UserError and nothing else, and a file in memory under a name.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "recipes/user_error.h"

namespace dms {

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// Any other exception passes through and is a finding.
template <typename Action>
void expect_at_most_user_error(const Action& action) {
  try {
    action();
  } catch (const UserError& error) {
    if (std::string_view(error.what()).empty()) std::abort();
  }
}

// A file that is rewritten for each input and never touches a disk.
class MemoryFile {
 public:
  MemoryFile() : descriptor_(::memfd_create("fuzz", MFD_CLOEXEC)) {
    if (descriptor_ < 0) std::abort();
  }
  const std::string& holding(std::string_view bytes) {
    if (::ftruncate(descriptor_, 0) != 0 ||
        ::pwrite(descriptor_, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
      std::abort();
    }
    return path_;
  }

 private:
  int descriptor_;
  std::string path_ = "/proc/self/fd/" + std::to_string(descriptor_);
};

}  // namespace dms
