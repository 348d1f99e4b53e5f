// A Hugging Face model directory: config.json, model.safetensors or shards with an index, tokenizer files.
// A single model.safetensors wins over an index.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "model/architecture.h"
#include "model/weights.h"

namespace dms {

// Reads and checks config.json.  Throws UserError.
Architecture read_architecture(const std::string& model_dir);

// Opens the weights, memory-mapped, checking every expected tensor's presence, shape and dtype; tensors that the
// architecture does not know are reported once on stderr.  `dtype` is the compute dtype (float32, bfloat16, float16):
// tensors stored in it are views of the mapping, others are converted on first use and kept.  Values are checked to be
// finite on first use.  Nobody may write to these tensors: the mapping is read-only memory.
// A tied model that holds an lm_head.weight of its own, different from the embedding, counts as untied:
// the source's architecture() says which.
// The source belongs to one thread at a time.  Throws UserError.
struct WeightReading {
  // false: nothing stays in memory beyond what the caller holds, so a layer is converted anew each time it is asked for.
  bool keep = true;
  bool warn = true;  // of tensors that are ignored
};
std::unique_ptr<WeightSource> open_weights(const std::string& model_dir, at::ScalarType dtype,
                                           const WeightReading& reading = {});

// Which file of the directory holds each tensor: tensor name -> file name.  Files are opened and their headers checked.
// Throws UserError.
std::map<std::string, std::string> weight_map(const std::string& model_dir);

// What the model is called, for people: `name` of source.json (which tools/quickstart.sh writes), else the Hugging Face
// name in config.json's _name_or_path, else the directory's name.
std::string base_model_name(const std::string& model_dir);

// SHA-256 (hex) over the sorted "name shape dtype" lines of the tensors and the SHA-256 of each weight file: identifies
// the base model that adapters belong to, whatever its directory is called.  Reads every weight file once a process.
std::string base_model_hash(const std::string& model_dir);

}  // namespace dms
