#include "model/upload.h"

#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

namespace dms {

namespace {

c10::Stream computing_stream(at::Device device) { return c10::impl::VirtualGuardImpl(device.type()).getStream(device); }

}  // namespace

Upload::Upload(at::Device device, int64_t piece_bytes) : device_(device) {
  if (device.is_cpu()) return;
  stream_ = c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device);
  memory_is_free_.emplace(device.type());
  copied_.emplace(device.type());
  const auto piece = [&] {
    return Piece{at::empty({piece_bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true)),
                 c10::Event(device.type())};
  };
  pieces_.emplace(std::array<Piece, 2>{piece(), piece()});
}

void Upload::begin() {
  if (stream_) memory_is_free_->record(computing_stream(device_));
}

void Upload::copy(const at::Tensor& to, const at::Tensor& from) {
  if (!stream_) {
    to.copy_(from);
    return;
  }
  const c10::StreamGuard guard(*stream_);
  memory_is_free_->block(*stream_);
  const at::Tensor to_bytes = to.view({-1}).view(at::kByte), from_bytes = from.view({-1}).view(at::kByte);
  const int64_t piece_bytes = pieces_->front().bytes.numel();
  for (int64_t begin = 0; begin < from_bytes.numel(); begin += piece_bytes) {
    const int64_t end = std::min(begin + piece_bytes, from_bytes.numel());
    Piece& piece = (*pieces_)[next_piece_];
    next_piece_ = 1 - next_piece_;
    piece.read.synchronize();
    const at::Tensor part = piece.bytes.slice(0, 0, end - begin);
    part.copy_(from_bytes.slice(0, begin, end));
    to_bytes.slice(0, begin, end).copy_(part, /*non_blocking=*/true);
    piece.read.record(*stream_);
  }
}

void Upload::end() {
  if (stream_) copied_->record(*stream_);
}

void Upload::wait_on_device() {
  if (stream_) copied_->block(computing_stream(device_));
}

}  // namespace dms
