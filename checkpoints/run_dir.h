// The checkpoints of a run: RUN/checkpoints/step-NNNNNN, each complete by itself and sealed by a manifest.json with the
// size and SHA-256 of every file,
//   {"version": 1, "step": 500, "files": {"adapters.safetensors": {"bytes": 1234, "sha256": "..."}, ...}}.
// A directory without a manifest that holds is not a checkpoint: a crash while writing costs one interval, never a run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dms {

// RUN/checkpoints/step-NNNNNN.
std::string checkpoint_path(const std::string& run_dir, int64_t step);

struct CheckpointDir {
  int64_t step = 0;
  std::string path;
};
// By name only, newest first; empty when the run has none.
std::vector<CheckpointDir> list_checkpoints(const std::string& run_dir);

// Seals `dir`: writes the manifest over the files in it.  Call once, last, before the directory gets its final name.
void write_manifest(const std::string& dir, int64_t step);

// What is wrong with a checkpoint directory, naming the file: "" when everything is as its manifest says.
std::string checkpoint_problem(const std::string& dir);

// The newest checkpoint that holds, "" when there is none.  Damaged ones are skipped with a warning on stderr.
std::string newest_checkpoint(const std::string& run_dir);

}  // namespace dms
