#include "data/staged_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "recipes/user_error.h"

namespace dms {
namespace fs = std::filesystem;
namespace {

constexpr size_t kBufferBytes = 1 << 18;

std::string without_trailing_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string directory_of(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

constexpr std::string_view kPartial = ".partial.", kRemoved = ".removed.";

std::string partial_name(const std::string& path) { return path + std::string(kPartial) + std::to_string(::getpid()); }
std::string removed_name(const std::string& path) { return path + std::string(kRemoved) + std::to_string(::getpid()); }

// Creation fails for the user's reasons (wrong directory, no permission) or for the world's (disk full).
[[noreturn]] void throw_creation_error(const std::string& path, int error) {
  switch (error) {
    case ENOENT:
      throw UserError(path, "cannot be created: the directory '" + directory_of(path) + "' does not exist");
    case ENOTDIR:
      throw UserError(path, "cannot be created: '" + directory_of(path) + "' is not a directory");
    case EACCES:
    case EPERM:
    case EROFS:
      throw UserError(path, "cannot be created: the directory '" + directory_of(path) + "' is not writable",
                      {std::strerror(error)});
    case ENAMETOOLONG:
      throw UserError(path, "cannot be created: the name is too long");
    default:
      throw IoError(path, "create", error);
  }
}

void write_all(int descriptor, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(descriptor, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw IoError(path, "write", errno);
    bytes.remove_prefix(static_cast<size_t>(count));
  }
}

void sync_path(const std::string& path, bool is_directory) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | (is_directory ? O_DIRECTORY : 0));
  if (descriptor < 0) throw IoError(path, "open to sync", errno);
  const int result = ::fsync(descriptor);
  const int error = errno;
  ::close(descriptor);
  // Some network file systems cannot sync directories and say EINVAL.
  if (result != 0 && !(is_directory && error == EINVAL)) throw IoError(path, "sync", error);
}

}  // namespace

IoError::IoError(const std::string& path, const std::string& action, int error_number)
    : std::runtime_error("cannot " + action + " '" + path + "': " + std::strerror(error_number)) {}

StagedFile::StagedFile(std::string path) : path_(std::move(path)), partial_path_(partial_name(path_)) {
  if (path_.empty() || path_.back() == '/' || fs::is_directory(path_)) {
    throw UserError(path_, "cannot be written: a file name is expected, this is a directory");
  }
  descriptor_ = ::open(partial_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
  if (descriptor_ < 0) throw_creation_error(path_, errno);
}

StagedFile::~StagedFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(partial_path_.c_str());
}

void StagedFile::write(std::string_view bytes) {
  buffer_.append(bytes);
  if (buffer_.size() >= kBufferBytes) flush();
}

void StagedFile::flush() {
  write_all(descriptor_, buffer_, path_);
  buffer_.clear();
}

void StagedFile::commit() {
  flush();
  if (::fsync(descriptor_) != 0) throw IoError(path_, "sync", errno);
  if (::rename(partial_path_.c_str(), path_.c_str()) != 0) throw IoError(path_, "rename into", errno);
  const int descriptor = std::exchange(descriptor_, -1);
  // Network file systems report a full disk as late as here.
  if (::close(descriptor) != 0) throw IoError(path_, "close", errno);
  sync_path(directory_of(path_), true);
}

StagedDir::StagedDir(std::string final_path)
    : final_path_(without_trailing_slash(std::move(final_path))), partial_path_(partial_name(final_path_)) {
  if (fs::exists(final_path_) && !fs::is_directory(final_path_)) {
    throw UserError(final_path_, "cannot be written: a directory is expected, this is a file");
  }
  std::error_code ignored;
  fs::remove_all(partial_path_, ignored);  // left by a killed process that had our process id
  if (::mkdir(partial_path_.c_str(), 0777) != 0) throw_creation_error(final_path_, errno);
}

StagedDir::~StagedDir() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(partial_path_, ignored);
}

void StagedDir::commit() {
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(partial_path_)) {
    if (!entry.is_symlink()) sync_path(entry.path().string(), entry.is_directory());
  }
  sync_path(partial_path_, true);

  if (::rename(partial_path_.c_str(), final_path_.c_str()) != 0) {
    if (errno != ENOTEMPTY && errno != EEXIST) throw IoError(final_path_, "rename into", errno);
    // Swapped in one step where the file system can, so that the final name is never missing; else in two.
    const std::string replaced = removed_name(final_path_);
    if (::syscall(SYS_renameat2, AT_FDCWD, partial_path_.c_str(), AT_FDCWD, final_path_.c_str(), RENAME_EXCHANGE) ==
        0) {
      fs::rename(partial_path_, replaced);
    } else {
      if (::rename(final_path_.c_str(), replaced.c_str()) != 0) throw IoError(final_path_, "replace", errno);
      if (::rename(partial_path_.c_str(), final_path_.c_str()) != 0) throw IoError(final_path_, "rename into", errno);
    }
    std::error_code ignored;
    fs::remove_all(replaced, ignored);
  }
  committed_ = true;
  sync_path(directory_of(final_path_), true);
}

void remove_dir(const std::string& path) {
  const std::string removed = removed_name(path);
  std::error_code ignored;
  fs::remove_all(removed, ignored);  // left by a killed process that had our process id
  if (::rename(path.c_str(), removed.c_str()) != 0) throw IoError(path, "remove", errno);
  sync_path(directory_of(path), true);
  fs::remove_all(removed, ignored);
}

bool is_unfinished_name(std::string_view file_name) {
  return file_name.find(kPartial) != std::string_view::npos || file_name.find(kRemoved) != std::string_view::npos;
}

void write_file(const std::string& path, std::string_view bytes) {
  StagedFile file(path);
  file.write(bytes);
  file.commit();
}

void read_blocks(const std::string& path, const std::function<void(std::string_view)>& visit) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw UserError(path, std::string("cannot be read: ") + std::strerror(errno));
  std::vector<char> buffer(1 << 20);
  ssize_t count;
  while ((count = ::read(descriptor, buffer.data(), buffer.size())) != 0) {
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      const int error = errno;
      ::close(descriptor);
      if (error == EISDIR) throw UserError(path, "is a directory; a file is expected");
      throw IoError(path, "read", error);
    }
    visit({buffer.data(), static_cast<size_t>(count)});
  }
  ::close(descriptor);
}

std::string read_file(const std::string& path) {
  std::string bytes;
  read_blocks(path, [&](std::string_view block) { bytes.append(block); });
  return bytes;
}

}  // namespace dms
