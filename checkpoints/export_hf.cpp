#include "checkpoints/export_hf.h"

#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "checkpoints/export_templates.h"
#include "checkpoints/model_dir.h"
#include "checkpoints/safetensors.h"
#include "data/staged_file.h"
#include "recipes/strict_json.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kAdapterShard = "model-adapters.safetensors";
// transformers prefers model.safetensors to an index, so a base model of one file takes another name here.
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kSingleFileExported = "model-base.safetensors";

// What tokenizers and generation read, and the base model's terms.
constexpr const char* kCopiedFiles[] = {"tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "tokenizer.model",
                                        "chat_template.jinja",
                                        "chat_template.json",
                                        "generation_config.json",
                                        "LICENSE",
                                        "LICENSE.txt",
                                        "LICENSE.md",
                                        "NOTICE",
                                        "USE_POLICY.md"};
constexpr const char* kCopiedDirectory = "additional_chat_templates";

void copy_path(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::copy(from, to, fs::copy_options::recursive, error);
  if (error) throw IoError(to.string(), "copy " + from.string() + " to", error.value());
}

// The dtype in which the base model is stored, as config.json calls it.
std::string torch_dtype(const std::string& safetensors_dtype) {
  if (safetensors_dtype == "BF16") return "bfloat16";
  return safetensors_dtype == "F16" ? "float16" : "float32";
}

ordered_json rope_scaling(const RopeScaling& rope) {
  switch (rope.type) {
    case RopeType::plain:
      return nullptr;
    case RopeType::linear:
      return {{"rope_type", "linear"}, {"factor", rope.factor}};
    case RopeType::llama3:
      return {{"rope_type", "llama3"},
              {"factor", rope.factor},
              {"low_freq_factor", rope.low_freq_factor},
              {"high_freq_factor", rope.high_freq_factor},
              {"original_max_position_embeddings", rope.original_max_position}};
    case RopeType::yarn:
      return {{"rope_type", "yarn"},
              {"factor", rope.factor},
              {"attention_factor", rope.attention_factor},
              {"beta_fast", rope.beta_fast},
              {"beta_slow", rope.beta_slow},
              {"truncate", rope.truncate},
              {"original_max_position_embeddings", rope.original_max_position}};
  }
  TORCH_CHECK(false, "unknown RopeType");
}

ordered_json make_config(const ExportInput& input, const std::string& dtype) {
  const Architecture& architecture = input.architecture;
  const AdapterFile& adapters = input.adapters;
  // The base model's keys in their order; read_architecture() has judged this text already.
  ordered_json config = ordered_json::parse(read_file((fs::path(input.model_dir) / "config.json").string()));
  for (const char* key : {"rope_parameters", "dtype", "_name_or_path"}) config.erase(key);

  const std::string& base_class = architecture.family.class_name;
  const std::string family = base_class.substr(0, base_class.find("ForCausalLM"));
  config["model_type"] = "dms_" + architecture.family.model_type;
  config["architectures"] = {"Dms" + base_class};
  config["auto_map"] = {{"AutoConfig", "configuration_dms.Dms" + family + "Config"},
                        {"AutoModelForCausalLM", "modeling_dms.Dms" + base_class}};
  // Keys whose absence means different things to different releases are written out.
  config["num_key_value_heads"] = architecture.num_kv_heads;
  config["head_dim"] = architecture.head_dim;
  config["rms_norm_eps"] = architecture.rms_norm_eps;
  config["tie_word_embeddings"] = architecture.tied_embeddings;
  config["rope_theta"] = architecture.rope.theta;
  config["rope_scaling"] = rope_scaling(architecture.rope);
  config["torch_dtype"] = dtype;

  config["dms_adapter"] = adapters.adapter;
  config["dms_adapter_bias"] = adapters.bias;
  config["dms_rank"] = adapters.rank;
  config["dms_alpha_scale"] = adapters.alpha_scale;
  config["dms_alpha_offset"] = adapters.alpha_offset;
  config["dms_window"] = adapters.window;
  config["dms_decision_shift"] = adapters.decision_shift;
  config["dms_zero_after_rope"] = adapters.zero_after_rope;
  config["dms_eviction"] = true;
  config["dms_target_cr"] = adapters.target_cr;
  config["dms_sequence_length"] = adapters.sequence_length;
  config["dms_base_model"] = adapters.base_model;
  config["dms_base_sha256"] = adapters.base_sha256;
  return config;
}

// Base weights, adapters and the index over both.  Returns the dtype of the base model's embedding.
std::string write_weights(const ExportInput& input, const fs::path& dir) {
  ordered_json placed = ordered_json::object();
  uint64_t total_bytes = 0;
  const auto place = [&](const std::string& tensor, const SafetensorsEntry& entry, const std::string& file) {
    placed[tensor] = file;
    total_bytes += entry.end - entry.begin;
  };

  const std::map<std::string, std::string> base = weight_map(input.model_dir);
  std::map<std::string, std::shared_ptr<SafetensorsFile>> copies;  // by the base model's file name
  for (const auto& [tensor, file] : base) {
    const std::string name = file == kSingleFile ? kSingleFileExported : file;
    auto& copy = copies[file];
    if (!copy) {
      copy_path(fs::path(input.model_dir) / file, dir / name);
      copy = SafetensorsFile::open((dir / name).string());  // the copy is whole
    }
    place(tensor, *copy->find(tensor), name);
  }
  const std::string dtype = copies.at(base.at("model.embed_tokens.weight"))->find("model.embed_tokens.weight")->dtype;

  if (copies.contains(kAdapterShard)) {
    throw UserError(input.model_dir, std::string("has a weight file named ") + kAdapterShard,
                    {"that name is taken by the adapters of an export: is this an export already?"});
  }
  write_safetensors((dir / kAdapterShard).string(), input.adapters.tensors);
  const auto adapters = SafetensorsFile::open((dir / kAdapterShard).string());
  for (const SafetensorsEntry& entry : adapters->entries()) place(entry.name, entry, kAdapterShard);

  const ordered_json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", placed}};
  write_file((dir / "model.safetensors.index.json").string(), index.dump(2) + "\n");
  return torch_dtype(dtype);
}

// The `license...` lines of the base model's own model card, so that the export states the same terms.
std::string license_lines(const std::string& model_dir) {
  const fs::path card = fs::path(model_dir) / "README.md";
  std::error_code ignored;
  if (!fs::is_regular_file(card, ignored)) return "";
  const std::string text = read_file(card.string());
  if (!text.starts_with("---\n")) return "";
  std::string lines;
  for (size_t begin = 4, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string line = text.substr(begin, end - begin);
    if (line == "---") return lines;
    if (line.starts_with("license")) lines += line + "\n";
  }
  return "";  // the header never ends, so it is none
}

std::string number(double value, const char* format = "%.4g") {
  char text[32];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

// The figures of `dms eval` as a section of the README.
std::string results_section(const std::string& evaluation) {
  if (evaluation.empty()) return "";
  const json figures = read_json_object(evaluation);
  struct Row {
    const char* key;
    const char* text;
  };
  constexpr Row rows[] = {
      {"kv_memory_ratio", "KV memory, dense / allocated at the end of the sequence"},
      {"kl_mean", "KL(base model \\|\\| this model), nats per token"},
      {"kl_mean_second_half", "the same over the second half of each sequence"},
      {"top1_agreement", "next token the same as the base model's"},
      {"ppl_teacher", "perplexity of the base model"},
      {"ppl_student", "perplexity of this model"},
  };
  std::string table;
  for (const Row& row : rows) {
    const auto it = figures.find(row.key);
    if (it == figures.end() || !it->is_number()) continue;
    table += std::string("| ") + row.text + " | " + number(it->get<double>()) + " |\n";
  }
  if (table.empty()) {
    throw UserError(evaluation, "holds none of the figures of an evaluation",
                    {"expected what `dms eval --json` writes"});
  }
  std::string text = "\n## Measured\n\nUnder hard eviction with the compact cache, on held-out text";
  if (figures.contains("tokens") && figures["tokens"].is_number()) {
    text += " (" + number(figures["tokens"].get<double>(), "%.0f") + " tokens";
    if (figures.contains("sequence_length") && figures["sequence_length"].is_number()) {
      text += " in sequences of " + number(figures["sequence_length"].get<double>(), "%.0f");
    }
    text += ")";
  }
  return text + ":\n\n| | |\n|---|---|\n" + table;
}

std::string make_readme(const ExportInput& input) {
  const AdapterFile& adapters = input.adapters;
  const std::map<std::string, std::string> values = {
      {"LICENSE", license_lines(input.model_dir)},
      {"MODEL", adapters.base_model},
      {"WINDOW", std::to_string(adapters.window)},
      {"ADAPTER", adapters.adapter == "linear" ? "small linear adapters" : "one borrowed query channel per KV head,"},
      {"TARGET_CR", number(adapters.target_cr)},
      {"SEQUENCE_LENGTH", std::to_string(adapters.sequence_length)},
      {"RESULTS", results_section(input.evaluation)},
  };
  // One pass over the template, so that values are never searched for names.
  std::string text;
  std::string_view rest = kHfReadme;
  for (size_t at; (at = rest.find('@')) != std::string_view::npos;) {
    const size_t end = rest.find('@', at + 1);
    const auto value = values.find(std::string(rest.substr(at + 1, end - at - 1)));
    TORCH_CHECK(value != values.end(), "templates/README.md has an unknown name at '", rest.substr(at, 20), "'");
    text.append(rest.substr(0, at)).append(value->second);
    rest.remove_prefix(end + 1);
  }
  return text.append(rest);
}

}  // namespace

void write_hf(const ExportInput& input, const std::string& dir) {
  const std::string readme = make_readme(input);  // first: it may refuse the evaluation file
  const std::string dtype = write_weights(input, dir);
  write_file((fs::path(dir) / "config.json").string(), make_config(input, dtype).dump(2) + "\n");
  write_file((fs::path(dir) / "README.md").string(), readme);
  write_file((fs::path(dir) / "configuration_dms.py").string(), kHfConfigurationPy);
  write_file((fs::path(dir) / "cache_dms.py").string(), kHfCachePy);
  write_file((fs::path(dir) / "modeling_dms.py").string(), kHfModelingPy);
  std::error_code ignored;
  for (const char* name : kCopiedFiles) {
    if (fs::is_regular_file(fs::path(input.model_dir) / name, ignored)) {
      copy_path(fs::path(input.model_dir) / name, fs::path(dir) / name);
    }
  }
  if (fs::is_directory(fs::path(input.model_dir) / kCopiedDirectory, ignored)) {
    copy_path(fs::path(input.model_dir) / kCopiedDirectory, fs::path(dir) / kCopiedDirectory);
  }
}

}  // namespace dms
