// A trained evictor's threshold, moved so that the cache shrinks by another ratio than it was trained for: what
// `dms retarget` keeps in a file, and the commands that run an evictor do for themselves.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/weights.h"
#include "trainer/trained_adapter.h"

namespace dms {

struct TargetRatio {
  double ratio = 0.0;             // dense over live keys at the end of a text; 0: as trained
  std::vector<std::string> data;  // token files to find the threshold on
  int64_t sequence_length = 0;    // of those texts; 0: the command's default
  int64_t max_tokens = 8192;      // a file
  bool per_head = false;          // an offset for each KV head instead of one for the model

  bool given() const { return ratio > 0.0; }
};

// Moves the threshold and takes the change over into `trained.file`; nothing when no ratio was given.  `flag` is what
// the ratio is called in messages.  Throws UserError for a ratio that the window alone does not leave.
void move_threshold(const TargetRatio& target, const std::string& flag, int64_t default_length,
                    const std::string& model_dir, WeightSource& source, TrainedAdapter& trained);

}  // namespace dms
