#include "checkpoints/model_dir.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoints/safetensors.h"
#include "data/staged_file.h"
#include "recipes/strict_json.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr size_t kMaxListed = 8;
constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";
constexpr const char* kExpectedDirectory =
    "expected a Hugging Face model directory: config.json, model.safetensors, tokenizer.json";

// The first few names, and how many more there are.
std::vector<std::string> listed(const std::vector<std::string>& names) {
  std::vector<std::string> lines(names.begin(), names.begin() + std::min(names.size(), kMaxListed));
  if (names.size() > kMaxListed) lines.push_back("and " + std::to_string(names.size() - kMaxListed) + " more");
  return lines;
}

// One warning on stderr for all of `names`.
void warn_ignored(const std::string& where, const std::string& reason, const std::vector<std::string>& names) {
  if (names.empty()) return;
  std::fprintf(stderr, "warning: %s: %s, and ignored:\n", where.c_str(), reason.c_str());
  for (const std::string& line : listed(names)) std::fprintf(stderr, "  %s\n", line.c_str());
}

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

void require_directory(const std::string& model_dir) {
  std::error_code ignored;
  if (fs::is_directory(model_dir, ignored)) return;
  throw UserError(model_dir, is_there(model_dir) ? "not a directory" : "no such directory", {kExpectedDirectory});
}

// Where each tensor of the model is.
struct WeightFiles {
  std::string index_path;  // the file that lists the tensors: the single file, or the index of the shards
  std::map<std::string, std::shared_ptr<SafetensorsFile>> files;      // by path
  std::map<std::string, std::shared_ptr<SafetensorsFile>> by_tensor;  // tensor name -> its file
  std::vector<std::string> unmapped;                                  // "NAME in FILE", where the index does not put it
};

WeightFiles open_shards(const fs::path& index_path) {
  const std::string where = index_path.string();
  const json index = read_json_object(where);
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object() || map->empty()) {
    throw UserError(where, "has no 'weight_map'", {"expected an object: tensor name -> file name"});
  }
  std::map<std::string, std::string> file_of_tensor;
  std::set<std::string> file_names;
  for (const auto& item : map->items()) {
    const std::string name = item.value().is_string() ? item.value().get<std::string>() : "";
    if (name.empty() || name.find_first_of(std::string("/\\\0", 3)) != std::string::npos ||
        name.find("..") != std::string::npos) {
      throw UserError(where, "'weight_map' puts " + in_quotes(item.key()) + " into " + shown(item.value()),
                      {"expected the name of a file in the same directory"});
    }
    file_of_tensor[item.key()] = name;
    file_names.insert(name);
  }

  std::vector<std::string> missing;
  for (const std::string& name : file_names) {
    if (!is_there(index_path.parent_path() / name)) missing.push_back(in_quotes(name));
  }
  if (!missing.empty()) {
    std::vector<std::string> details = listed(missing);
    details.push_back("the download is not complete: fetch the missing files");
    throw UserError(
        where,
        "missing " + std::to_string(missing.size()) + " of " + std::to_string(file_names.size()) + " weight files:",
        details);
  }

  WeightFiles weights;
  weights.index_path = where;
  for (const std::string& name : file_names) {
    const std::string path = (index_path.parent_path() / name).string();
    weights.files[path] = SafetensorsFile::open(path);
  }
  std::vector<std::string> absent;
  for (const auto& [tensor, name] : file_of_tensor) {
    const auto& file = weights.files.at((index_path.parent_path() / name).string());
    if (file->find(tensor) == nullptr) absent.push_back(in_quotes(tensor) + " is not in " + name);
    weights.by_tensor[tensor] = file;
  }
  if (!absent.empty()) {
    throw UserError(where, "the index and the weight files do not belong together:", listed(absent));
  }
  for (const auto& [path, file] : weights.files) {
    for (const SafetensorsEntry& entry : file->entries()) {
      const auto it = weights.by_tensor.find(entry.name);
      if (it != weights.by_tensor.end() && it->second == file) continue;
      weights.unmapped.push_back(in_quotes(entry.name) + " in " + fs::path(path).filename().string());
    }
  }
  return weights;
}

WeightFiles open_weight_files(const std::string& model_dir) {
  require_directory(model_dir);
  const fs::path single = fs::path(model_dir) / "model.safetensors";
  const fs::path index = fs::path(model_dir) / "model.safetensors.index.json";
  if (is_there(single)) {
    WeightFiles weights;
    weights.index_path = single.string();
    const auto file = SafetensorsFile::open(single.string());
    weights.files[single.string()] = file;
    for (const SafetensorsEntry& entry : file->entries()) weights.by_tensor[entry.name] = file;
    return weights;
  }
  if (is_there(index)) return open_shards(index);

  std::vector<std::string> details = {"expected model.safetensors, or model.safetensors.index.json with its shards"};
  for (const auto& file : fs::directory_iterator(model_dir)) {
    const std::string extension = file.path().extension().string();
    if (extension == ".bin" || extension == ".pt" || extension == ".pth" || extension == ".gguf") {
      details.push_back("found " + in_quotes(file.path().filename().string()) +
                        ": load it with transformers and call save_pretrained(..., safe_serialization=True)");
      break;
    }
  }
  throw UserError(model_dir, "has no weights", details);
}

bool is_weight_dtype(const std::string& dtype) { return dtype == "F32" || dtype == "F16" || dtype == "BF16"; }

// Presence, shape and dtype of everything the architecture needs.  Returns the names that it does not know.
std::vector<std::string> check_tensors(const WeightFiles& weights, const Architecture& architecture) {
  std::vector<std::string> missing, wrong_shape, wrong_dtype;
  std::set<std::string> expected_names;
  for (const TensorSpec& spec : expected_tensors(architecture)) {
    expected_names.insert(spec.name);
    const auto it = weights.by_tensor.find(spec.name);
    if (it == weights.by_tensor.end()) {
      missing.push_back(spec.name);
      continue;
    }
    const SafetensorsEntry& entry = *it->second->find(spec.name);
    if (entry.shape != spec.shape) {
      wrong_shape.push_back("'" + spec.name + "' is " + describe_tensor(entry.dtype, entry.shape) + ", expected " +
                            describe_tensor(entry.dtype, spec.shape));
    } else if (!is_weight_dtype(entry.dtype)) {
      wrong_dtype.push_back("'" + spec.name + "' is " + describe_tensor(entry.dtype, entry.shape));
    }
  }
  std::vector<std::string> unknown;
  for (const auto& [name, file] : weights.by_tensor) {
    if (!expected_names.contains(name) && !name.ends_with(".rotary_emb.inv_freq")) unknown.push_back(name);
  }

  const std::string of_all = " of the " + std::to_string(expected_names.size()) + " tensors";
  if (!missing.empty()) {
    std::vector<std::string> details = listed(missing);
    if (missing.front() == kHead) {
      details.push_back("config.json has tie_word_embeddings false: set it to true if the head is the embedding");
    }
    const std::string near = nearest_name(missing.front(), unknown);
    if (!near.empty()) details.push_back("the nearest name in the file is " + in_quotes(near));
    throw UserError(weights.index_path,
                    "missing " + std::to_string(missing.size()) + of_all + " that config.json implies:", details);
  }
  if (!wrong_shape.empty()) {
    throw UserError(weights.index_path,
                    "shapes other than config.json implies in " + std::to_string(wrong_shape.size()) + of_all + ":",
                    listed(wrong_shape));
  }
  if (!wrong_dtype.empty()) {
    std::vector<std::string> details = listed(wrong_dtype);
    details.push_back("expected F32, F16 or BF16: use the original, unquantised release of the model");
    throw UserError(weights.index_path, "unsupported dtypes in " + std::to_string(wrong_dtype.size()) + of_all + ":",
                    details);
  }
  return unknown;
}

// Whether a tied model's own lm_head.weight is the embedding again, bit for bit or, stored in another dtype, by value.
bool head_equals_embedding(const WeightFiles& weights) {
  const at::Tensor head = weights.by_tensor.at(kHead)->tensor(kHead);
  const at::Tensor embedding = weights.by_tensor.at(kEmbedding)->tensor(kEmbedding);
  if (head.scalar_type() != embedding.scalar_type()) return head.to(at::kFloat).equal(embedding.to(at::kFloat));
  return std::memcmp(head.data_ptr(), embedding.data_ptr(), head.nbytes()) == 0;
}

bool all_finite(const at::Tensor& values) {
  // A NaN anywhere becomes both extremes; an infinity becomes one of them.  One pass, no temporaries.
  const auto [smallest, largest] = at::aminmax(values);
  return std::isfinite(smallest.item<double>()) && std::isfinite(largest.item<double>());
}

// Rows that are looked at before their pages are given back.
constexpr int64_t kCheckedBytes = int64_t{16} << 20;

class MappedWeights : public WeightSource {
 public:
  MappedWeights(WeightFiles weights, Architecture architecture, at::ScalarType dtype, bool keep)
      : weights_(std::move(weights)), architecture_(std::move(architecture)), dtype_(dtype), keep_(keep) {}

  const Architecture& architecture() const override { return architecture_; }
  at::ScalarType dtype() const override { return dtype_; }

  LayerWeights layer(int64_t index) override {
    TORCH_CHECK(index >= 0 && index < architecture_.num_layers, "no layer ", index);
    if (!keep_) {
      for (const auto& [path, file] : weights_.files) file->release_pages();
    }
    const std::string prefix = "model.layers." + std::to_string(index) + ".";
    LayerWeights weights;
    weights.input_norm = use(prefix + "input_layernorm.weight");
    weights.q_proj = use(prefix + "self_attn.q_proj.weight");
    weights.k_proj = use(prefix + "self_attn.k_proj.weight");
    weights.v_proj = use(prefix + "self_attn.v_proj.weight");
    weights.o_proj = use(prefix + "self_attn.o_proj.weight");
    if (architecture_.family.qkv_bias) {
      weights.q_bias = use(prefix + "self_attn.q_proj.bias");
      weights.k_bias = use(prefix + "self_attn.k_proj.bias");
      weights.v_bias = use(prefix + "self_attn.v_proj.bias");
    }
    if (architecture_.family.qk_norm) {
      weights.q_norm = use(prefix + "self_attn.q_norm.weight");
      weights.k_norm = use(prefix + "self_attn.k_norm.weight");
    }
    weights.post_norm = use(prefix + "post_attention_layernorm.weight");
    weights.gate_proj = use(prefix + "mlp.gate_proj.weight");
    weights.up_proj = use(prefix + "mlp.up_proj.weight");
    weights.down_proj = use(prefix + "mlp.down_proj.weight");
    return weights;
  }
  at::Tensor embedding() override { return use(kEmbedding); }
  at::Tensor final_norm() override { return use("model.norm.weight"); }
  at::Tensor head() override { return use(architecture_.tied_embeddings ? kEmbedding : kHead); }

 private:
  at::Tensor use(const std::string& name) {
    if (const auto found = ready_.find(name); found != ready_.end() && found->second.defined()) return found->second;
    const at::Tensor stored = weights_.by_tensor.at(name)->tensor(name);
    const at::Tensor converted = stored.to(dtype_);
    // Float16 ends at 65504, so a conversion may overflow where the stored values are sound.
    if (!ready_.contains(name) && !is_sound(name, converted)) report_not_finite(name, stored);
    if (!converted.is_alias_of(stored)) weights_.by_tensor.at(name)->release_pages();  // seen for the last time
    ready_[name] = keep_ ? converted : at::Tensor();
    return converted;
  }

  // Where pages are not kept, an embedding is looked at in parts: the whole may be larger than what a rank has.
  bool is_sound(const std::string& name, const at::Tensor& converted) const {
    if (keep_) return all_finite(converted);
    const at::Tensor flat = converted.flatten();
    const int64_t part = kCheckedBytes / flat.element_size();
    for (int64_t begin = 0; begin < flat.numel(); begin += part) {
      if (!all_finite(flat.slice(0, begin, std::min(begin + part, flat.numel())))) return false;
      if (flat.numel() > part) weights_.by_tensor.at(name)->release_pages();
    }
    return true;
  }

  [[noreturn]] void report_not_finite(const std::string& name, const at::Tensor& stored) const {
    const std::string& path = weights_.by_tensor.at(name)->path();
    const at::Tensor bad = at::logical_not(at::isfinite(stored)).flatten();
    const int64_t num_bad = bad.sum().item<int64_t>();
    if (num_bad == 0) {
      throw UserError(path, "'" + name + "' has values beyond the range of float16",
                      {"choose float32 or bfloat16 as the compute dtype"});
    }
    throw UserError(path,
                    "'" + name + "' holds NaN or infinity (" + std::to_string(num_bad) + " of " +
                        std::to_string(bad.numel()) + " values, the first at element " +
                        std::to_string(bad.nonzero().min().item<int64_t>()) + ")",
                    {"the file is damaged: compare its checksum with the source and copy it again"});
  }

  WeightFiles weights_;
  Architecture architecture_;
  at::ScalarType dtype_;
  const bool keep_;
  std::map<std::string, at::Tensor> ready_;  // checked; in the compute dtype, or undefined when it is not kept
};

}  // namespace

Architecture read_architecture(const std::string& model_dir) {
  require_directory(model_dir);
  const std::string path = (fs::path(model_dir) / "config.json").string();
  if (!is_there(path)) throw UserError(path, "no such file", {kExpectedDirectory});
  return parse_architecture(read_file(path), path);
}

std::unique_ptr<WeightSource> open_weights(const std::string& model_dir, at::ScalarType dtype,
                                           const WeightReading& reading) {
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, "no compute dtype: ", dtype);
  Architecture architecture = read_architecture(model_dir);
  WeightFiles weights = open_weight_files(model_dir);

  const bool tied_with_head = architecture.tied_embeddings && weights.by_tensor.contains(kHead);
  if (tied_with_head) architecture.tied_embeddings = false;  // so that the head is checked with the others
  std::vector<std::string> unknown = check_tensors(weights, architecture);
  if (tied_with_head) {
    architecture.tied_embeddings = head_equals_embedding(weights);
    if (!architecture.tied_embeddings && reading.warn) {
      std::fprintf(stderr,
                   "warning: %s: config.json ties the head to the embedding, but 'lm_head.weight' differs from it: "
                   "using it as the head\n",
                   weights.index_path.c_str());
    }
  }
  for (std::string& name : unknown) name = in_quotes(name);
  if (reading.warn) {
    warn_ignored(weights.index_path, "unknown to a " + architecture.family.model_type + " model", unknown);
    warn_ignored(weights.index_path, "not where the index puts it", weights.unmapped);
  }
  return std::make_unique<MappedWeights>(std::move(weights), std::move(architecture), dtype, reading.keep);
}

std::map<std::string, std::string> weight_map(const std::string& model_dir) {
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : open_weight_files(model_dir).by_tensor) {
    files[tensor] = fs::path(file->path()).filename().string();
  }
  return files;
}

std::string base_model_name(const std::string& model_dir) {
  const auto text_in = [&](const char* file, const char* key) -> std::string {
    const fs::path path = fs::path(model_dir) / file;
    if (!is_there(path)) return "";
    const json object = read_json_object(path.string());
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : "";
  };
  if (std::string name = text_in("source.json", "name"); !name.empty()) return name;
  // Somebody's local path says nothing here; a name in the hub is "owner/name" or "name".
  std::string name = text_in("config.json", "_name_or_path");
  if (!name.empty() && name.front() != '/' && name.front() != '.' && name.front() != '~' &&
      std::count(name.begin(), name.end(), '/') <= 1 && name.find('\\') == std::string::npos) {
    return name;
  }
  const fs::path place = fs::weakly_canonical(model_dir);  // "." and a trailing slash have no name
  return (place.has_filename() ? place : place.parent_path()).filename().string();
}

std::string base_model_hash(const std::string& model_dir) {
  const WeightFiles weights = open_weight_files(model_dir);
  std::string identity;  // of the files as they are now
  for (const auto& [path, file] : weights.files) {
    identity += fs::canonical(path).string() + '\0' + std::to_string(fs::file_size(path)) + '\0' +
                std::to_string(fs::last_write_time(path).time_since_epoch().count()) + '\0';
  }
  static std::mutex mutex;
  static std::map<std::string, std::string> known;
  const std::lock_guard<std::mutex> lock(mutex);
  std::string& hash = known[identity];
  if (!hash.empty()) return hash;

  std::string lines;
  for (const auto& [name, file] : weights.by_tensor) {  // sorted by name
    const SafetensorsEntry& entry = *file->find(name);
    lines += name + " " + describe_tensor(entry.dtype, entry.shape) + "\n";
  }
  for (const auto& [path, file] : weights.files) lines += sha256_file(path) + "\n";
  return hash = sha256_hex(lines);
}

}  // namespace dms
