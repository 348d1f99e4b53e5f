// Model directories, and the exports that transformers loads.
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoints/model_dir.h"
#include "checkpoints/safetensors.h"
#include "data/staged_file.h"
#include "recipes/strict_json.h"
#include "tools/inspect.h"

namespace dms {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

std::string rope_text(const RopeScaling& rope) {
  const std::string text = "theta " + std::to_string(std::llround(rope.theta));
  switch (rope.type) {
    case RopeType::plain:
      return text;
    case RopeType::linear:
      return text + ", linear scaling";
    case RopeType::llama3:
      return text + ", llama3 scaling";
    case RopeType::yarn:
      return text + ", yarn scaling";
  }
  return text;
}

int64_t element_bytes(const std::string& dtype) { return dtype == "F32" ? 4 : 2; }

// One row a weight file, and which dtypes occur: "BF16", or "BF16, F32".
struct WeightFiles {
  ordered_json rows = ordered_json::array();
  std::set<std::string> dtypes;
  int64_t num_bytes = 0, num_elements = 0;

  void add(const fs::path& path) {
    const auto file = SafetensorsFile::open(path.string());
    const auto size = static_cast<int64_t>(fs::file_size(path));
    rows.push_back({{"file", path.filename().string()}, {"tensors", file->entries().size()}, {"bytes", size}});
    num_bytes += size;
    for (const SafetensorsEntry& entry : file->entries()) {
      dtypes.insert(entry.dtype);
      int64_t elements = 1;
      for (const int64_t extent : entry.shape) elements *= extent;
      num_elements += elements;
    }
  }

  std::string dtype_text() const {
    std::string text;
    for (const std::string& dtype : dtypes) text += (text.empty() ? "" : ", ") + dtype;
    return text;
  }
};

void add_tokenizer(const fs::path& dir, ordered_json& description) {
  const fs::path path = dir / "tokenizer.json";
  if (fs::exists(path)) description["tokenizer_sha256"] = sha256_file(path.string());
}

}  // namespace

void describe_model(const std::string& dir, ordered_json& description) {
  // Opening them checks that every tensor is there with its shape; the values are not read.
  const Architecture a = open_weights(dir, at::kFloat)->architecture();
  WeightFiles files;
  std::set<std::string> names;
  for (const auto& [tensor, file] : weight_map(dir)) names.insert(file);
  for (const std::string& name : names) files.add(fs::path(dir) / name);

  description["family"] = a.family.model_type;
  description["class"] = a.family.class_name;
  description["parameters"] = a.num_parameters();
  description["layers"] = a.num_layers;
  description["hidden_size"] = a.hidden_size;
  description["intermediate_size"] = a.intermediate_size;
  description["query_heads"] = a.num_heads;
  description["kv_heads"] = a.num_kv_heads;
  description["head_dim"] = a.head_dim;
  description["vocab_size"] = a.vocab_size;
  description["max_positions"] = a.max_positions;
  description["tied_embeddings"] = a.tied_embeddings;
  description["rope"] = rope_text(a.rope);
  description["dtype"] = files.dtype_text();
  description["weight_bytes"] = files.num_bytes;
  description["kv_cache_bytes_per_token"] =
      2 * a.num_layers * a.num_kv_heads * a.head_dim * element_bytes(*files.dtypes.begin());
  add_tokenizer(dir, description);
  description["files"] = files.rows;
}

void describe_hf_export(const std::string& dir, ordered_json& description) {
  const nlohmann::json config = read_json_object((fs::path(dir) / "config.json").string());
  const auto member = [&](const char* key) { return config.value(key, nlohmann::json()); };
  description["family"] = config["model_type"].get<std::string>().substr(4);
  description["layers"] = member("num_hidden_layers");
  description["kv_heads"] = member("num_key_value_heads");
  description["head_dim"] = member("head_dim");
  ordered_json settings = ordered_json::object();
  for (const auto& [key, value] : config.items()) {
    if (key.starts_with("dms_")) settings[key.substr(4)] = value;
  }
  description["dms"] = settings;
  WeightFiles files;
  std::set<fs::path> paths;
  for (const fs::directory_entry& entry : fs::directory_iterator(dir)) {
    if (entry.path().extension() == ".safetensors") paths.insert(entry.path());
  }
  for (const fs::path& path : paths) files.add(path);
  description["dtype"] = files.dtype_text();
  description["weight_bytes"] = files.num_bytes;
  add_tokenizer(dir, description);
  description["files"] = files.rows;
}

}  // namespace dms
