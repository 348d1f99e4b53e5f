// Reading the files that people have: plain, or compressed with gzip (several members one after another included).
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace dms {

// How such files begin.
inline constexpr std::string_view kGzipMagic = "\x1f\x8b", kParquetMagic = "PAR1", kByteOrderMark = "\xEF\xBB\xBF";

class InputFile {
 public:
  explicit InputFile(const std::string& path);  // throws UserError
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  struct stat status() const;
  // Fewer than `num_bytes` only at the end of the file.
  std::string read(uint64_t begin, uint64_t num_bytes) const;

 private:
  std::string path_;
  int descriptor_;
};

// Calls back with the unpacked bytes of a gzip file, a block at a time.  Throws UserError when it is damaged or cut off.
void unpack_gzip(const std::string& path, const std::function<void(std::string_view)>& on_bytes);

}  // namespace dms
