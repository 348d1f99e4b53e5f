#include "checkpoints/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <thread>

#include "data/staged_file.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

constexpr std::chrono::seconds kLettingGo{3};

// 0, or the error of the last attempt.
int lock(int descriptor) {
  const auto begin = std::chrono::steady_clock::now();
  while (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK || std::chrono::steady_clock::now() - begin > kLettingGo) return errno;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return 0;
}

}  // namespace

RunLock::RunLock(const std::string& run_dir) : run_dir_(run_dir) {
  std::error_code error;
  made_ = std::filesystem::create_directories(run_dir, error);
  if (error) throw IoError(run_dir, "create", error.value());
  descriptor_ = ::open(run_dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const int failure = descriptor_ < 0 ? errno : lock(descriptor_);
  if (failure == EWOULDBLOCK) {
    ::close(descriptor_);
    throw UserError(
        run_dir, "another process is training into it",
        {"wait for it or stop it ('fuser " + run_dir + "' names it on this host), or choose another --run-dir"});
  }
  if (failure != 0) {
    std::fprintf(stderr, "warning: %s: cannot be locked (%s): see to it that no other process trains into it\n",
                 run_dir.c_str(), std::strerror(failure));
  }
}

RunLock::~RunLock() {
  if (made_) ::rmdir(run_dir_.c_str());  // fails where there is something in it
  if (descriptor_ >= 0) ::close(descriptor_);
}

}  // namespace dms
