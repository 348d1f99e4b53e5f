#include "data/token_file_hdf5.h"

#ifdef __SANITIZE_ADDRESS__
// What HDF5 1.10.8 loses when closing a file fails on a full disk; our own handles are checked like all else.
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }
#endif

namespace dms {
namespace {

herr_t keep_innermost(unsigned depth, const H5E_error2_t* error, void* text) {
  if (depth == 0 && error->desc != nullptr) *static_cast<std::string*>(text) = error->desc;
  return 0;
}

}  // namespace

std::recursive_mutex& hdf5_mutex() {
  static std::recursive_mutex mutex;
  static const bool prepared = [] {
    // Without this, HDF5 1.10.8 crashes at exit after a write failed on a full disk.  Every handle has an owner, so
    // there is nothing left for it to clean up.
    H5dont_atexit();
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    return true;
  }();
  (void)prepared;
  return mutex;
}

std::string hdf5_error() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_innermost, &text);
  H5Eclear2(H5E_DEFAULT);
  return text.empty() ? "no reason given" : text;
}

}  // namespace dms
