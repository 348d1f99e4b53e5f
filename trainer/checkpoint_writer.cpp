#include "trainer/checkpoint_writer.h"

#include <utility>

namespace dms {

CheckpointWriter::~CheckpointWriter() {
  if (writing_.valid()) writing_.wait();
}

void CheckpointWriter::start(CheckpointContents contents) {
  finish();
  writing_ = std::async(std::launch::async,
                        [this, contents = std::move(contents)] { write_checkpoint(run_dir_, contents, keep_); });
}

void CheckpointWriter::finish() {
  if (writing_.valid()) writing_.get();
}

}  // namespace dms
