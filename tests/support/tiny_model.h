// A random Llama small enough for a unit test, as the Hugging Face directory that transformers would have written:
// config.json, model.safetensors (F32), tokenizer.json (byte-level BPE), tokenizer_config.json.  Knows no LibTorch and
// none of this project's readers or writers, so that it can judge them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace dms {

struct TinyModel {
  int64_t num_layers = 2;          // L
  int64_t hidden_size = 32;        // D
  int64_t num_heads = 4;           // H
  int64_t num_kv_heads = 2;        // G
  int64_t head_dim = 8;            // d
  int64_t intermediate_size = 64;  // I
  int64_t vocab_size = 300;        // V, at least 259: 3 special tokens, 256 bytes, then merges
  bool tied_embeddings = true;
  uint64_t seed = 1;
};

// One tensor of a safetensors file as raw little-endian bytes.
struct RawTensor {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

// Deterministic weights: projections of variance 1/inputs, norms near 1, so that attention is neither flat nor frozen.
std::vector<RawTensor> tiny_model_tensors(const TinyModel& model);
// The bytes of a safetensors file holding these tensors in this order.
std::string safetensors_bytes(const std::vector<RawTensor>& tensors);
// As safetensors_bytes, with this text as the header and these bytes as the data: for files that lie.
std::string safetensors_bytes(const std::string& header, const std::string& data);

std::string tiny_config_json(const TinyModel& model);
std::string tiny_tokenizer_json(const TinyModel& model);
std::string tiny_tokenizer_config_json(const TinyModel& model);

// All files of the directory: name -> bytes.
std::map<std::string, std::string> tiny_model_files(const TinyModel& model = {});
// Creates `dir` (and its parents) and writes them.
void write_tiny_model(const std::string& dir, const TinyModel& model = {});
void write_test_file(const std::string& path, const std::string& bytes);

}  // namespace dms
