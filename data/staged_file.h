// The one seam through which this program makes files: written aside, synced, then renamed, so that a final name
// never holds half a file.  StagedFile for one file, StagedDir for a directory that appears whole.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>

#include "data/sha256.h"  // whoever writes files usually records their hash

namespace dms {

// A failure of the world (disk full, permission lost while running): exit code 1.  Names the path and the reason.
class IoError : public std::runtime_error {
 public:
  IoError(const std::string& path, const std::string& action, int error_number);
};

// Writes PATH via PATH.partial.<pid>.  Not committed: the partial file is removed by the destructor.
// A directory that does not exist or cannot be written to is the user's mistake (UserError); all else is IoError.
class StagedFile {
 public:
  explicit StagedFile(std::string path);
  ~StagedFile();
  StagedFile(const StagedFile&) = delete;
  StagedFile& operator=(const StagedFile&) = delete;

  void write(std::string_view bytes);
  // For libraries that write to a name themselves (HDF5): they truncate and fill this file and close it; what write()
  // gets after that follows it.
  const std::string& partial_path() const { return partial_path_; }
  void commit();  // flush, fsync, rename, fsync of the directory

 private:
  void flush();

  std::string path_, partial_path_;
  std::string buffer_;
  int descriptor_ = -1;
};

// Writes directory PATH via PATH.partial.<pid>; `path()` is where to put files until commit().
class StagedDir {
 public:
  explicit StagedDir(std::string final_path);
  ~StagedDir();
  StagedDir(const StagedDir&) = delete;
  StagedDir& operator=(const StagedDir&) = delete;

  const std::string& path() const { return partial_path_; }
  void commit();  // fsync every file and directory, rename; an existing final directory is replaced

 private:
  std::string final_path_, partial_path_;
  bool committed_ = false;
};

// Removes directory PATH at once: renamed aside first, so that a process killed on the way leaves nothing under its name
// but the whole.  What it leaves is called PATH.removed.<pid>.
void remove_dir(const std::string& path);
// True for what a killed process left beside its files: NAME.partial.<pid>, NAME.removed.<pid>.
bool is_unfinished_name(std::string_view file_name);

void write_file(const std::string& path, std::string_view bytes);  // StagedFile in one call
std::string read_file(const std::string& path);                    // throws UserError when unreadable
// Calls `visit` with the file's bytes, a block at a time; `visit` must not throw.  Throws UserError when unreadable.
void read_blocks(const std::string& path, const std::function<void(std::string_view)>& visit);

}  // namespace dms
