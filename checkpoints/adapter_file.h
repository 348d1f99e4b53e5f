// Adapter files: adapters.safetensors + dms_config.json, everything a trained evictor is.  The settings are in both,
// typed in dms_config.json and as strings in the tensors' metadata, and must agree.
//
// Tensors (float32), i = 0..L-1:
//   linear  model.layers.{i}.self_attn.dms_proj_alpha.weight       [G, D]   reads RMSNorm_a(residual before input_layernorm)
//           model.layers.{i}.self_attn.dms_proj_alpha_norm.weight  [D]      RMSNorm_a's weight
//           model.layers.{i}.self_attn.dms_proj_alpha.bias         [G]      only with adapter.bias: per_head
//   neuron  model.layers.{i}.self_attn.dms_neuron.weight           [G, D]   with rank: full
//           model.layers.{i}.self_attn.dms_neuron.lora_A.weight    [r, D]   with rank: r (x = alpha/r * B A n, alpha = r)
//           model.layers.{i}.self_attn.dms_neuron.lora_B.weight    [G, r]
//           model.layers.{i}.self_attn.dms_neuron.bias             [G]      only with adapter.bias: per_head
//           model.layers.{i}.self_attn.dms_neuron.index            [G, 2]   int64 (query head, channel) borrowed
//           model.layers.{i}.self_attn.dms_neuron.angle            [G]      all layers or none: what is borrowed is the
//                                                                           channel turned by this angle in its rotary pair
// The eviction logit of token t is alpha_scale * x - alpha_offset + bias[g]; the bias is in logit units.
#pragma once

#include <cstdint>
#include <string>

#include "checkpoints/safetensors.h"
#include "model/architecture.h"

namespace dms {

struct AdapterFile {
  std::string adapter;  // "linear" or "neuron"
  std::string bias;     // "per_head" or "none"
  int64_t rank = 0;     // neuron: 0 = full
  double alpha_scale = 100.0;
  double alpha_offset = 5.0;
  int64_t window = 0;
  int64_t decision_shift = 1;
  bool zero_after_rope = false;
  bool attend_across_documents = true;
  double target_cr = 1.0;
  int64_t step = 0;
  int64_t sequence_length = 0;  // trained at
  std::string base_model;       // name only, for people
  std::string base_sha256;      // base_model_hash()
  std::string recipe_sha256;
  NamedTensors tensors;
};

// Whether borrowed channels are at an angle in their rotary pair.
bool has_turned_channels(const AdapterFile& file);

// Writes both files into `dir`, which exists (a StagedDir's path(), so that they appear together).
void write_adapter_file(const std::string& dir, const AdapterFile& file);

// `dir`: an adapter directory (adapters.safetensors and dms_config.json), a checkpoint directory, or a run directory
// (its newest complete checkpoint).  Checks the version, that both files say the same, a checkpoint's manifest, every
// layer's tensors and shapes against `architecture`, finiteness, and base_sha256 against `expected_base_sha256` unless
// that is empty.  The tensors are copies, free to be written to.  Throws UserError.
AdapterFile read_adapter_file(const std::string& dir, const Architecture& architecture,
                              const std::string& expected_base_sha256);

}  // namespace dms
