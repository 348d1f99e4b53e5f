// Copies from host memory to a device beside what the device computes.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <array>
#include <optional>

namespace dms {

// On a stream of its own, through two pieces of pinned memory: a copy out of pageable memory would hold up the host
// until all that the device was given before is done.  On a CPU, where there are no streams: plain copies.
//
// begin() and wait_on_device() belong to the thread that computes, copy() and end() to the one that copies; a begin()
// follows the wait_on_device() of the upload before it.
class Upload {
 public:
  static constexpr int64_t kPieceBytes = int64_t{32} << 20;
  explicit Upload(at::Device device, int64_t piece_bytes = kPieceBytes);

  // The copies that follow write into memory that the device may use until it has done what it was given so far.
  void begin();
  // `to` on the device, `from` on the host, of one shape and dtype, both contiguous.
  void copy(const at::Tensor& to, const at::Tensor& from);
  void end();
  // What the device is given from now on comes after the copies.
  void wait_on_device();

 private:
  struct Piece {
    at::Tensor bytes;
    c10::Event read;  // by the device
  };

  const at::Device device_;
  std::optional<c10::Stream> stream_;  // none on a CPU
  std::optional<c10::Event> memory_is_free_, copied_;
  std::optional<std::array<Piece, 2>> pieces_;
  size_t next_piece_ = 0;
};

}  // namespace dms
