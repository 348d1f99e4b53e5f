#include "checkpoints/export_nvidia.h"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoints/export_files.h"
#include "checkpoints/export_templates.h"
#include "checkpoints/fixed_neuron.h"
#include "checkpoints/model_card.h"
#include "data/staged_file.h"

namespace dms {

namespace {

namespace fs = std::filesystem;

constexpr int64_t kPagedBlock = 256;

nlohmann::ordered_json make_config(const ExportInput& input, const CommonOffset& common) {
  const AdapterFile& adapters = input.adapters;
  nlohmann::ordered_json config = portable_config(input);
  // Their own exports name no class.  A name that only their code has makes servers refuse the model instead of running
  // it without eviction.
  config["architectures"] = {"Qwen3ForCausalLMDMS"};
  config["dms_alpha_scale"] = adapters.alpha_scale;
  config["dms_initial_alpha_offset"] = common.offset;
  config["dms_window_size"] = adapters.window;
  config["dms_paged_attention_block_size"] = kPagedBlock;
  config["dms_disable_eviction"] = false;
  config["dms_separate_alpha"] = adapters.adapter == "linear";
  config["dms_alpha_per"] = "head";
  const double ratio = adapters.target_cr, whole = std::round(ratio);
  if (ratio == whole) {
    config["dms_cr"] = static_cast<int64_t>(whole);
  } else {
    config["dms_cr"] = ratio;
  }
  return config;
}

// Their two tensors a layer, the rows scaled to the common offset.
NamedTensors linear_tensors(const AdapterFile& adapters, const CommonOffset& common) {
  NamedTensors tensors;
  int64_t layer = 0;
  for (const auto& [name, tensor] : adapters.tensors) {
    if (name.ends_with(".dms_proj_alpha.weight")) {
      tensors.emplace_back(
          name, (tensor.to(at::kDouble) * common.row_scale_LG[layer++].unsqueeze(1)).to(at::kFloat).contiguous());
    } else if (name.ends_with(".dms_proj_alpha_norm.weight")) {
      tensors.emplace_back(name, tensor);
    }
  }
  return tensors;
}

}  // namespace

std::string nvidia_objection(const Architecture& a, const AdapterFile& adapters) {
  if (a.family.model_type != "qwen3") {
    return "NVIDIA's code runs qwen3 models only, not " + a.family.model_type + ": export to hf";
  }
  if (adapters.decision_shift != 1) {
    return "it judges a token by the next one: train with eviction.decision_shift: 1";
  }
  if (adapters.window <= kPagedBlock) {
    return "its window must be larger than a paged block of 256 tokens: train with eviction.window: 257 or more";
  }
  if (adapters.adapter == "linear") return common_offset_objection(adapters, a);
  if (!adapters.zero_after_rope) {
    return "it zeroes the borrowed channel before RoPE and after it: train with adapter.zero_after_rope: true";
  }
  if (adapters.bias != "none") {
    return "its decisions have one threshold for all KV heads: train with adapter.bias: none";
  }
  return fixed_neuron_objection(adapters, a);
}

void write_nvidia(const ExportInput& input, const std::string& dir) {
  const fs::path out = dir;
  const std::string readme = make_model_card(kNvidiaReadme, input);  // first: it may refuse the evaluation file
  const CommonOffset common = common_offset(input.adapters, input.architecture).value();
  if (input.adapters.adapter == "linear") {
    write_weights(input, dir, linear_tensors(input.adapters, common));
  } else {
    write_weights(input, dir, {}, fixed_neuron_edit(input.adapters, input.architecture));
  }
  write_file((out / "config.json").string(), make_config(input, common).dump(2) + "\n");
  write_file((out / "README.md").string(), readme);
  copy_tokenizer_files(input.model_dir, dir);
}

}  // namespace dms
