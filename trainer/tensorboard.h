// TensorBoard event files: which bytes they consist of, and how a resumed run replaces the points it computes again.
//
// Format: TFRecords (tensorboard/summary/writer/record_writer.py) that each hold one Event message
// (tensorboard/compat/proto/{event,summary}.proto).  The protobuf wire encoding is protozero's: the four messages
// needed here do not justify the protobuf compiler and its run-time library.
//
// Resume: TensorBoard keeps every point it has read, also of steps that a resumed run repeats.  It drops those with
// step >= s only when a later file says Event{step: s, session_log{START}} (file version 2), so each file opens so.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "trainer/append_file.h"

namespace dms {

struct TensorBoardScalar {
  std::string_view tag;  // "group/name": TensorBoard shows one section a group
  double value = 0;      // stored as float32, the format's only scalar type
};

// The pieces, separate so that each can be checked against published bytes.
uint32_t crc32c(std::string_view bytes);         // Castagnoli (RFC 3720)
uint32_t masked_crc32c(std::string_view bytes);  // as TFRecords store it
std::string tfrecord(std::string_view data);
std::string file_version_event(double wall_seconds);
std::string session_start_event(double wall_seconds, int64_t step);
std::string scalars_event(double wall_seconds, int64_t step, std::span<const TensorBoardScalar> scalars);

// Writes one new event file in `log_dir` (created when absent).  At most one writer a directory at a time.
class TensorBoardWriter {
 public:
  // Points with step >= first_step in the directory's older files are superseded.  Throws IoError.
  TensorBoardWriter(const std::string& log_dir, int64_t first_step);

  // One event, handed to the operating system before returning.  Throws IoError.
  void append(int64_t step, std::span<const TensorBoardScalar> scalars);

  const std::string& path() const { return file_->path(); }

 private:
  std::unique_ptr<AppendFile> file_;
};

}  // namespace dms
