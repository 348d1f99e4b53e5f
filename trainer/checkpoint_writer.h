// Writes checkpoints beside training: what is to be saved is copied at once, the disk works while the next steps run.
#pragma once

#include <future>
#include <string>

#include "trainer/run_state.h"

namespace dms {

class CheckpointWriter {
 public:
  explicit CheckpointWriter(std::string run_dir, int64_t keep) : run_dir_(std::move(run_dir)), keep_(keep) {}
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Waits for the checkpoint before it.  Throws what writing that one threw: IoError when the disk is full.
  void start(CheckpointContents contents);
  // When it returns, everything started is complete on the disk.
  void finish();

 private:
  const std::string run_dir_;
  const int64_t keep_;
  std::future<void> writing_;
};

}  // namespace dms
