#include "checkpoints/export_fastdms.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoints/export_files.h"
#include "checkpoints/export_templates.h"
#include "checkpoints/fixed_neuron.h"
#include "checkpoints/model_card.h"
#include "data/staged_file.h"

namespace dms {

namespace fs = std::filesystem;

std::string fastdms_objection(const Architecture& a, const AdapterFile& adapters) {
  if (a.family.model_type != "llama" && a.family.model_type != "qwen3") {
    return "FastDMS runs llama and qwen3 models only, not " + a.family.model_type + ": export to hf";
  }
  if (a.rope.type == RopeType::yarn) return "FastDMS has no yarn RoPE: export to hf";
  if (a.family.model_type == "qwen3" && a.rope.type != RopeType::plain) {
    return "FastDMS ignores the rope_scaling of qwen3 models: export to hf";
  }
  if (adapters.adapter != "neuron") {
    return "it reads a borrowed query channel, not a linear adapter: train with adapter.kind: neuron";
  }
  if (adapters.decision_shift != 0) {
    return "it judges a token by its own query: train with eviction.decision_shift: 0";
  }
  if (adapters.zero_after_rope) {
    return "it zeroes the borrowed channel before RoPE only: train with adapter.zero_after_rope: false";
  }
  if (a.family.qk_norm && adapters.bias != "none") {
    return "its decisions have one threshold for all KV heads: train with adapter.bias: none";
  }
  if (std::string reason = fixed_neuron_objection(adapters, a); !reason.empty()) return reason;
  return common_offset_objection(adapters, a);
}

void write_fastdms(const ExportInput& input, const std::string& dir) {
  const fs::path out = dir;
  const AdapterFile& adapters = input.adapters;
  const std::string readme = make_model_card(kFastdmsReadme, input);  // first: it may refuse the evaluation file
  write_weights(input, dir, {}, fixed_neuron_edit(adapters, input.architecture));
  write_file((out / "config.json").string(), portable_config(input).dump(2) + "\n");
  const nlohmann::ordered_json metadata = {
      {"window_size", adapters.window},
      {"alpha_scale", adapters.alpha_scale},
      {"alpha_offset", common_offset(adapters, input.architecture)->offset},
      {"target_cr", adapters.target_cr},
      {"context_len", adapters.sequence_length},
      {"format", "fastdms"},
      {"base_model", adapters.base_model},
      {"base_sha256", adapters.base_sha256},
  };
  write_file((out / "dms_metadata.json").string(), metadata.dump(2) + "\n");
  write_file((out / "README.md").string(), readme);
  copy_tokenizer_files(input.model_dir, dir);
}

}  // namespace dms
