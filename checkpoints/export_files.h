// What exports that are whole models have in common: weight files and their index, config.json, tokenizer files.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "checkpoints/export.h"

namespace dms {

// The base model's config.json with the RoPE and dtype keys that transformers 4 and 5 both read (with the new ones
// alone, transformers 4 silently takes theta 10000), and with the keys written out whose absence means different things
// to different readers.  Without auto_map: its code is not in the export.
nlohmann::ordered_json portable_config(const ExportInput& input);

// A new value for the tensor `name`, of its shape and dtype; undefined: the base model's stays.
using TensorEdit = std::function<at::Tensor(const std::string& name, const at::Tensor& base)>;

// Writes the base model's weight files.  Without an edit: byte for byte.  With one: anew, holding exactly the tensors
// that the architecture expects, since some readers fail on any other.
// `added` go into a file of their own.  An index is written when there is more than one file.
void write_weights(const ExportInput& input, const std::string& dir, const NamedTensors& added,
                   const TensorEdit& edit = {});

// Tokenizer, generation and licence files, byte for byte.
void copy_tokenizer_files(const std::string& model_dir, const std::string& dir);

}  // namespace dms
