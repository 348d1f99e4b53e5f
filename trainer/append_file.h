// A log that grows by whole records: metrics.jsonl and the TensorBoard event file.  Unlike everything else this program
// writes it is readable while it grows, so it is not staged and renamed; its readers expect a torn last record instead
// (the writer may die at any byte).
#pragma once

#include <string>
#include <string_view>

namespace dms {

class AppendFile {
 public:
  enum class Mode {
    create,  // the file must not exist yet
    extend,  // created when absent, otherwise continued at its end
  };
  // Throws IoError.
  AppendFile(std::string path, Mode mode);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  // Hands one record to the operating system before returning: it survives this process, not a power cut.
  // Throws IoError, for instance when the disk is full.
  void append(std::string_view record);

  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int descriptor_ = -1;
};

}  // namespace dms
