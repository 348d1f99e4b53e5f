// One process at a time trains into a run directory: two would interleave their metrics and clean up each other's
// unfinished checkpoints.  The lock is the kernel's, on the directory itself, so it ends with its process however that
// ends and leaves no file behind.
#pragma once

#include <string>

namespace dms {

class RunLock {
 public:
  // Makes the directory where there is none and holds its lock.  A process that was just killed may need a moment to
  // let go, which is waited for.  Throws UserError when another process goes on holding it, IoError when the directory
  // cannot be made.  A file system without locks gets a warning.
  explicit RunLock(const std::string& run_dir);
  // A directory that this lock made and nothing was put into disappears again.
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  const std::string run_dir_;
  bool made_ = false;
  int descriptor_ = -1;
};

}  // namespace dms
