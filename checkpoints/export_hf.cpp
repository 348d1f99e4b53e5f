#include "checkpoints/export_hf.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoints/export_files.h"
#include "checkpoints/export_templates.h"
#include "checkpoints/model_card.h"
#include "data/staged_file.h"

namespace dms {

namespace {

namespace fs = std::filesystem;

nlohmann::ordered_json make_config(const ExportInput& input) {
  const AdapterFile& adapters = input.adapters;
  nlohmann::ordered_json config = portable_config(input);
  const std::string& base_class = input.architecture.family.class_name;
  const std::string family = base_class.substr(0, base_class.find("ForCausalLM"));
  config["model_type"] = "dms_" + input.architecture.family.model_type;
  config["architectures"] = {"Dms" + base_class};
  config["auto_map"] = {{"AutoConfig", "configuration_dms.Dms" + family + "Config"},
                        {"AutoModelForCausalLM", "modeling_dms.Dms" + base_class}};

  config["dms_adapter"] = adapters.adapter;
  config["dms_adapter_bias"] = adapters.bias;
  config["dms_rank"] = adapters.rank;
  config["dms_alpha_scale"] = adapters.alpha_scale;
  config["dms_alpha_offset"] = adapters.alpha_offset;
  config["dms_window"] = adapters.window;
  config["dms_decision_shift"] = adapters.decision_shift;
  config["dms_zero_after_rope"] = adapters.zero_after_rope;
  config["dms_turned_channels"] = has_turned_channels(adapters);
  config["dms_eviction"] = true;
  config["dms_target_cr"] = adapters.target_cr;
  config["dms_sequence_length"] = adapters.sequence_length;
  config["dms_base_model"] = adapters.base_model;
  config["dms_base_sha256"] = adapters.base_sha256;
  return config;
}

}  // namespace

void write_hf(const ExportInput& input, const std::string& dir) {
  const fs::path out = dir;
  const std::string readme = make_model_card(kHfReadme, input);  // first: it may refuse the evaluation file
  write_weights(input, dir, input.adapters.tensors);
  write_file((out / "config.json").string(), make_config(input).dump(2) + "\n");
  write_file((out / "README.md").string(), readme);
  write_file((out / "configuration_dms.py").string(), kHfConfigurationPy);
  write_file((out / "cache_dms.py").string(), kHfCachePy);
  write_file((out / "modeling_dms.py").string(), kHfModelingPy);
  copy_tokenizer_files(input.model_dir, dir);
}

}  // namespace dms
