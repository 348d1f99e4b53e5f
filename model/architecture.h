// What a pretrained decoder is: dimensions and the few ways in which the supported families differ, read strictly
// from the text of a Hugging Face config.json.  Knows no files: the text comes from checkpoints/model_dir.
//
// Letters used for shapes in the whole project:
//   B sequences   T tokens   L layers   D hidden size   H query heads   G KV heads   R = H / G   d head dimension
//   I intermediate size   V vocabulary   w window
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dms {

enum class RopeType { plain, linear, llama3, yarn };

struct RopeScaling {
  RopeType type = RopeType::plain;
  double theta = 10000.0;
  double factor = 1.0;                // all but plain
  double low_freq_factor = 1.0;       // llama3
  double high_freq_factor = 4.0;      // llama3
  int64_t original_max_position = 0;  // llama3, yarn
  double attention_factor = 1.0;      // yarn: of cosines and sines, resolved from factor and mscale where not given
  double beta_fast = 32.0;            // yarn: turns over the original length above which a frequency is kept
  double beta_slow = 1.0;             // yarn: ... below which it is slowed by `factor`
  bool truncate = true;               // yarn: the channels of these two are rounded outwards
};

// How one family departs from the common pre-norm RMSNorm/SwiGLU decoder.
struct Family {
  std::string model_type;        // config.json `model_type`
  std::string class_name;        // config.json `architectures[0]`
  bool qkv_bias = false;         // Qwen2: q, k, v projections carry biases that no config key announces
  bool qk_norm = false;          // Qwen3: RMSNorm over d of each q and k head before RoPE
  int64_t default_kv_heads = 0;  // 0: as many as query heads
  int64_t default_head_dim = 0;  // 0: D / H
};
const std::vector<Family>& families();

struct Architecture {
  Family family;
  int64_t hidden_size = 0;        // D
  int64_t num_layers = 0;         // L
  int64_t num_heads = 0;          // H
  int64_t num_kv_heads = 0;       // G
  int64_t head_dim = 0;           // d
  int64_t intermediate_size = 0;  // I
  int64_t vocab_size = 0;         // V
  int64_t max_positions = 0;      // longest trained length; 0: config.json does not say
  double rms_norm_eps = 1e-6;
  bool tied_embeddings = false;
  RopeScaling rope;

  int64_t group_size() const { return num_heads / num_kv_heads; }  // R
  int64_t num_parameters() const;                                  // embeddings counted once when tied
};

// Throws UserError naming `where` (the file) and the key: missing or mistyped values, unsupported families and
// features (quantised weights, sliding windows, other activations, ...), inconsistent dimensions.
Architecture parse_architecture(std::string_view config_json, const std::string& where);

// A tensor that the checkpoint must hold: its Hugging Face name and shape.
struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
};
std::vector<TensorSpec> expected_tensors(const Architecture& architecture);

}  // namespace dms
