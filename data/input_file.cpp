#include "data/input_file.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>

#include <cerrno>
#include <cstring>

#include "data/staged_file.h"
#include "recipes/user_error.h"

namespace dms {

InputFile::InputFile(const std::string& path) : path_(path) {
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor_ < 0) throw UserError(path, std::string("cannot be read: ") + std::strerror(errno));
}

InputFile::~InputFile() { ::close(descriptor_); }

struct stat InputFile::status() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) throw IoError(path_, "examine", errno);
  return status;
}

std::string InputFile::read(uint64_t begin, uint64_t num_bytes) const {
  std::string bytes(num_bytes, '\0');
  size_t size = 0;
  while (size < bytes.size()) {
    const ssize_t count =
        ::pread(descriptor_, bytes.data() + size, bytes.size() - size, static_cast<off_t>(begin + size));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw IoError(path_, "read", errno);
    if (count == 0) break;
    size += static_cast<size_t>(count);
  }
  bytes.resize(size);
  return bytes;
}

namespace {

class Inflater {
 public:
  Inflater() {
    constexpr int kGzipOnly = 16 + MAX_WBITS;
    if (inflateInit2(&stream_, kGzipOnly) != Z_OK) throw std::bad_alloc();
  }
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  z_stream& stream() { return stream_; }

 private:
  z_stream stream_{};
};

}  // namespace

void unpack_gzip(const std::string& path, const std::function<void(std::string_view)>& on_bytes) {
  constexpr size_t kBlockBytes = 1 << 18;
  const InputFile file(path);
  Inflater inflater;
  z_stream& stream = inflater.stream();
  std::string output(kBlockBytes, '\0');
  bool in_member = true;
  for (uint64_t position = 0;;) {
    const std::string input = file.read(position, kBlockBytes);
    position += input.size();
    if (input.empty()) break;
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(input.data()));
    stream.avail_in = static_cast<uInt>(input.size());
    while (stream.avail_in > 0 || stream.avail_out == 0) {
      if (!in_member) {
        if (stream.avail_in == 0) break;
        inflateReset(&stream);
        in_member = true;
      }
      stream.next_out = reinterpret_cast<Bytef*>(output.data());
      stream.avail_out = static_cast<uInt>(output.size());
      const int result = inflate(&stream, Z_NO_FLUSH);
      if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) {
        throw UserError(path, std::string("is damaged: ") + (stream.msg != nullptr ? stream.msg : "not gzip"),
                        {"compare its checksum with the source and copy it again"});
      }
      on_bytes(std::string_view(output).substr(0, output.size() - stream.avail_out));
      if (result == Z_STREAM_END) in_member = false;
      if (result == Z_BUF_ERROR) break;
    }
  }
  if (in_member) {
    throw UserError(path, "ends in the middle of its compressed data",
                    {"the file looks truncated: compare its size with the source and copy it again"});
  }
}

}  // namespace dms
