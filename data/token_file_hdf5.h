// HDF5's C handles as owners, and the two things about that library our reader and writer must agree on: calls are
// serialised by one mutex (distribution builds need not be thread-safe), and its error stack becomes part of a message
// instead of being printed.  Included by token_file*.cpp only.
#pragma once

#include <hdf5.h>

#include <mutex>
#include <string>
#include <utility>

namespace dms {

std::recursive_mutex& hdf5_mutex();

// The innermost entry of HDF5's error stack ("filter returned failure during read"); clears the stack.
std::string hdf5_error();

// Owns one identifier of any kind (file, dataset, dataspace, datatype, attribute, property list, group).
class Hdf5Id {
 public:
  Hdf5Id() = default;
  explicit Hdf5Id(hid_t id) : id_(id) {}
  Hdf5Id(Hdf5Id&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)) {}
  Hdf5Id& operator=(Hdf5Id&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }
  ~Hdf5Id() { close(); }

  // False when HDF5 reports a failure: closing a file writes it.
  bool close() {
    if (id_ < 0) return true;
    std::lock_guard lock(hdf5_mutex());
    const hid_t id = std::exchange(id_, H5I_INVALID_HID);
    return H5Iget_type(id) == H5I_FILE ? H5Fclose(id) >= 0 : H5Idec_ref(id) >= 0;
  }
  bool valid() const { return id_ >= 0; }
  operator hid_t() const { return id_; }

 private:
  hid_t id_ = H5I_INVALID_HID;
};

}  // namespace dms
