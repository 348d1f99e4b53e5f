#include "checkpoints/export_files.h"

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoints/model_dir.h"
#include "checkpoints/safetensors.h"
#include "data/input_file.h"
#include "data/staged_file.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kAddedShard = "model-adapters.safetensors";
// transformers prefers model.safetensors to an index, so beside other files a base model of one file takes another name.
constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kSingleFileOfSeveral = "model-base.safetensors";

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

// std::filesystem's copy calls a full disk an input/output error.
void copy_bytes(const fs::path& from, const fs::path& to) {
  constexpr uint64_t kBlockBytes = uint64_t{4} << 20;
  const InputFile input(from.string());
  StagedFile output(to.string());
  for (uint64_t begin = 0;; begin += kBlockBytes) {
    const std::string block = input.read(begin, kBlockBytes);
    output.write(block);
    if (block.size() < kBlockBytes) break;
  }
  output.commit();
}

// The dtype in which the base model is stored, as config.json calls it: that of its embedding.
std::string torch_dtype(const std::string& model_dir) {
  const std::string file = weight_map(model_dir).at(kEmbedding);
  const std::string dtype = SafetensorsFile::open((fs::path(model_dir) / file).string())->find(kEmbedding)->dtype;
  if (dtype == "BF16") return "bfloat16";
  return dtype == "F16" ? "float16" : "float32";
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

// One weight file with the edited tensors in place of the base model's.
void write_edited_file(const SafetensorsFile& base, const std::set<std::string>& expected, const TensorEdit& edit,
                       const std::string& path) {
  NamedTensors tensors;
  for (const SafetensorsEntry& entry : base.entries()) {
    if (!expected.contains(entry.name)) continue;
    const at::Tensor stored = base.tensor(entry.name), edited = edit(entry.name, stored);
    tensors.emplace_back(entry.name, edited.defined() ? edited : stored);
  }
  write_safetensors(path, tensors);
}

}  // namespace

ordered_json portable_config(const ExportInput& input) {
  const Architecture& architecture = input.architecture;
  // The base model's keys in their order; read_architecture() has judged this text already.
  ordered_json config = ordered_json::parse(read_file((fs::path(input.model_dir) / "config.json").string()));
  for (const char* key : {"rope_parameters", "dtype", "_name_or_path", "auto_map"}) config.erase(key);
  config["num_key_value_heads"] = architecture.num_kv_heads;
  config["head_dim"] = architecture.head_dim;
  config["rms_norm_eps"] = architecture.rms_norm_eps;
  config["tie_word_embeddings"] = architecture.tied_embeddings;
  config["rope_theta"] = architecture.rope.theta;
  config["rope_scaling"] = rope_scaling(architecture.rope);
  config["torch_dtype"] = torch_dtype(input.model_dir);
  return config;
}

void write_weights(const ExportInput& input, const std::string& dir, const NamedTensors& added,
                   const TensorEdit& edit) {
  std::map<std::string, std::set<std::string>> tensors_of_file;
  for (const auto& [tensor, file] : weight_map(input.model_dir)) tensors_of_file[file].insert(tensor);
  if (!added.empty() && tensors_of_file.contains(kAddedShard)) {
    throw UserError(input.model_dir, std::string("has a weight file named ") + kAddedShard,
                    {"that name is taken by the adapters of an export: is this an export already?"});
  }
  std::set<std::string> expected;
  for (const TensorSpec& spec : expected_tensors(input.architecture)) expected.insert(spec.name);

  std::map<std::string, std::string> placed;  // tensor -> file
  uint64_t total_bytes = 0;
  const auto place = [&](const std::string& name, const std::set<std::string>* mapped) {
    const auto file = SafetensorsFile::open((fs::path(dir) / name).string());  // what was written is whole
    for (const SafetensorsEntry& entry : file->entries()) {
      if (mapped != nullptr && !mapped->contains(entry.name)) continue;
      placed[entry.name] = name;
      total_bytes += entry.end - entry.begin;
    }
  };
  for (const auto& [file, tensors] : tensors_of_file) {
    const std::string name = file == kSingleFile && !added.empty() ? kSingleFileOfSeveral : file;
    const fs::path from = fs::path(input.model_dir) / file, to = fs::path(dir) / name;
    if (edit) {
      std::set<std::string> wanted;
      std::set_intersection(tensors.begin(), tensors.end(), expected.begin(), expected.end(),
                            std::inserter(wanted, wanted.end()));
      if (wanted.empty()) continue;
      write_edited_file(*SafetensorsFile::open(from.string()), wanted, edit, to.string());
    } else {
      copy_bytes(from, to);
    }
    place(name, &tensors);
  }
  if (!added.empty()) {
    write_safetensors((fs::path(dir) / kAddedShard).string(), added);
    place(kAddedShard, nullptr);
  }
  if (tensors_of_file.contains(kSingleFile) && added.empty()) return;
  const ordered_json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", placed}};
  write_file((fs::path(dir) / "model.safetensors.index.json").string(), index.dump(2) + "\n");
}

void copy_tokenizer_files(const std::string& model_dir, const std::string& dir) {
  std::error_code ignored;
  for (const char* name : kCopiedFiles) {
    if (fs::is_regular_file(fs::path(model_dir) / name, ignored)) {
      copy_bytes(fs::path(model_dir) / name, fs::path(dir) / name);
    }
  }
  if (fs::is_directory(fs::path(model_dir) / kCopiedDirectory, ignored)) {
    const fs::path copies = fs::path(dir) / kCopiedDirectory;
    fs::create_directory(copies);
    for (const auto& entry : fs::directory_iterator(fs::path(model_dir) / kCopiedDirectory)) {
      if (entry.is_regular_file()) copy_bytes(entry.path(), copies / entry.path().filename());
    }
  }
}

}  // namespace dms
