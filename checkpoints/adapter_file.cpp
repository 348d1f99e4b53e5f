#include "checkpoints/adapter_file.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoints/run_dir.h"
#include "data/staged_file.h"
#include "recipes/strict_json.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kFormat = "dms-adapters";
constexpr int64_t kVersion = 1;
constexpr const char* kCreatedBy = "dms " DMS_VERSION;
constexpr const char* kTensorFile = "adapters.safetensors";
constexpr const char* kConfigFile = "dms_config.json";

constexpr int64_t kMaxInteger = int64_t{1} << 48;

// The fields of both files, once.  A visitor writes them or reads and checks them.
template <class File, class Visitor>
void visit_fields(File& file, Visitor& visit) {
  visit.text("adapter", file.adapter, {"linear", "neuron"});
  visit.text("bias", file.bias, {"per_head", "none"});
  visit.integer("rank", file.rank, 0, 65536);
  visit.real("alpha_scale", file.alpha_scale, 1e-3, 1e6);
  visit.real("alpha_offset", file.alpha_offset, -1e6, 1e6);
  visit.integer("window", file.window, 0, kMaxInteger);
  visit.integer("decision_shift", file.decision_shift, 0, 1);
  visit.flag("zero_after_rope", file.zero_after_rope);
  visit.flag("attend_across_documents", file.attend_across_documents);
  visit.real("target_cr", file.target_cr, 1.0, 1e6);
  visit.integer("step", file.step, 0, kMaxInteger);
  visit.integer("sequence_length", file.sequence_length, 0, kMaxInteger);
  visit.text("base_model", file.base_model, {});
  visit.text("base_sha256", file.base_sha256, {});
  visit.text("recipe_sha256", file.recipe_sha256, {});
}

// The text of a typed value in safetensors metadata, which holds only strings.
std::string metadata_text(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_number_float()) return value.dump();
  char digits[32];  // the shortest text that reads back as the same double
  const auto end = std::to_chars(digits, digits + sizeof(digits), value.get<double>()).ptr;
  return std::string(digits, end);
}

struct FieldWriter {
  nlohmann::ordered_json config;

  void text(const char* key, const std::string& value, const std::vector<std::string>&) { config[key] = value; }
  void integer(const char* key, int64_t value, int64_t, int64_t) { config[key] = value; }
  void real(const char* key, double value, double, double) { config[key] = value; }
  void flag(const char* key, bool value) { config[key] = value; }
};

// Reads dms_config.json and checks that the tensors' own metadata says the same.
class FieldReader {
 public:
  FieldReader(const json& config, const SafetensorsFile& tensors, std::string where)
      : config_(config), tensors_(tensors), where_(std::move(where)) {}

  void text(const char* key, std::string& value, const std::vector<std::string>& choices) {
    std::string expected = "a string";
    for (const std::string& choice : choices) expected += (choice == choices.front() ? ": " : " or ") + choice;
    const json& found = find(key);
    if (!found.is_string()) reject(key, expected);
    value = found.get<std::string>();
    if (!choices.empty() && std::find(choices.begin(), choices.end(), value) == choices.end()) reject(key, expected);
    compare_metadata(key, value);
  }
  void integer(const char* key, int64_t& value, int64_t min, int64_t max) {
    const json& found = find(key);
    const bool in_range = found.is_number_integer() && found <= max && found >= min;
    if (!in_range) reject(key, "an integer from " + std::to_string(min) + " to " + std::to_string(max));
    value = found.get<int64_t>();
    compare_metadata(key, metadata_text(value));
  }
  void real(const char* key, double& value, double min, double max) {
    const json& found = find(key);
    const bool in_range = found.is_number() && found.get<double>() >= min && found.get<double>() <= max;
    if (!in_range) reject(key, "a number from " + metadata_text(min) + " to " + metadata_text(max));
    value = found.get<double>();
    compare_metadata(key, metadata_text(value));
  }
  void flag(const char* key, bool& value) {
    const json& found = find(key);
    if (!found.is_boolean()) reject(key, "true or false");
    value = found.get<bool>();
    compare_metadata(key, metadata_text(value));
  }

  // Format and version come before everything else: of a later version nothing may be assumed.
  void format_and_version() {
    if (find("format") != kFormat) reject("format", std::string("\"") + kFormat + "\"");
    if (find("version") != kVersion) reject("version", std::to_string(kVersion) + ", the only one this program knows");
    compare_metadata("format", kFormat);
    compare_metadata("version", std::to_string(kVersion));
  }

 private:
  const json& find(const char* key) const {
    const auto it = config_.find(key);
    if (it == config_.end()) throw UserError(where_, std::string("the key '") + key + "' is missing");
    return *it;
  }
  [[noreturn]] void reject(const char* key, const std::string& expected) const {
    throw UserError(where_, std::string("'") + key + "' is " + shown(config_.at(key)), {"expected " + expected});
  }
  void compare_metadata(const std::string& key, const std::string& expected) const {
    const auto it = tensors_.metadata().find(key);
    if (it != tensors_.metadata().end() && it->second == expected) return;
    throw UserError(tensors_.path(),
                    "its metadata " + (it == tensors_.metadata().end() ? "does not hold '" + key + "'"
                                                                       : "has '" + key + "' " + in_quotes(it->second)),
                    {std::string("but ") + kConfigFile + " beside it says " + in_quotes(expected),
                     "the two files do not belong together: copy both from the same place"});
  }

  const json& config_;
  const SafetensorsFile& tensors_;
  std::string where_;
};

struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
  const char* dtype = "F32";
};

constexpr const char* kFirstAngle = "model.layers.0.self_attn.dms_neuron.angle";

std::vector<ExpectedTensor> expected_layer(const AdapterFile& file, const Architecture& architecture, bool turned,
                                           int64_t layer) {
  const int64_t D = architecture.hidden_size, G = architecture.num_kv_heads;
  const std::string attention = "model.layers." + std::to_string(layer) + ".self_attn.";
  const std::string prefix = attention + (file.adapter == "linear" ? "dms_proj_alpha" : "dms_neuron");
  std::vector<ExpectedTensor> tensors;
  if (file.adapter == "linear") {
    tensors = {{prefix + ".weight", {G, D}}, {prefix + "_norm.weight", {D}}};
  } else {
    if (file.rank == 0) {
      tensors = {{prefix + ".weight", {G, D}}};
    } else {
      tensors = {{prefix + ".lora_A.weight", {file.rank, D}}, {prefix + ".lora_B.weight", {G, file.rank}}};
    }
    tensors.push_back({prefix + ".index", {G, 2}, "I64"});
    if (turned) tensors.push_back({prefix + ".angle", {G}});
  }
  if (file.bias == "per_head") tensors.push_back({prefix + ".bias", {G}});
  return tensors;
}

void check_borrowed_channels(const SafetensorsFile& tensors, const std::string& name, const at::Tensor& index_G2,
                             const Architecture& architecture) {
  const auto index = index_G2.accessor<int64_t, 2>();
  for (int64_t g = 0; g < architecture.num_kv_heads; ++g) {
    const int64_t head = index[g][0], channel = index[g][1], group_size = architecture.group_size();
    if (head >= g * group_size && head < (g + 1) * group_size && channel >= 0 && channel < architecture.head_dim) {
      continue;
    }
    throw UserError(
        tensors.path(),
        "'" + name + "' borrows channel " + std::to_string(channel) + " of query head " + std::to_string(head) +
            " for KV head " + std::to_string(g),
        {"expected a head from " + std::to_string(g * group_size) + " to " + std::to_string((g + 1) * group_size - 1) +
         " and a channel below " + std::to_string(architecture.head_dim)});
  }
}

NamedTensors read_tensors(const SafetensorsFile& source, const AdapterFile& file, const Architecture& architecture) {
  NamedTensors tensors;
  std::set<std::string> known;
  const bool turned = source.find(kFirstAngle) != nullptr;
  if (turned && architecture.family.qk_norm) {
    throw UserError(source.path(), "turns borrowed channels in their rotary pair",
                    {"a " + architecture.family.model_type +
                     " model has a norm on its queries, which such a turn "
                     "would not commute with: were these adapters trained on this model?"});
  }
  for (int64_t layer = 0; layer < architecture.num_layers; ++layer) {
    for (const ExpectedTensor& expected : expected_layer(file, architecture, turned, layer)) {
      const SafetensorsEntry* entry = source.find(expected.name);
      if (entry == nullptr) {
        throw UserError(
            source.path(), "has no '" + expected.name + "'",
            {"expected one for each of the " + std::to_string(architecture.num_layers) + " layers of the model"});
      }
      if (entry->shape != expected.shape || entry->dtype != expected.dtype) {
        throw UserError(source.path(), "'" + expected.name + "' is " + describe_tensor(entry->dtype, entry->shape),
                        {"expected " + describe_tensor(expected.dtype, expected.shape) +
                         ": were these adapters trained on this model?"});
      }
      // A copy: the trainer writes to these, and the mapping is read-only.
      const at::Tensor values = source.tensor(expected.name).clone();
      if (std::string_view(expected.dtype) == "I64") {
        check_borrowed_channels(source, expected.name, values, architecture);
      } else if (!at::isfinite(values).all().item<bool>()) {
        throw UserError(source.path(), "'" + expected.name + "' holds NaN or infinity");
      }
      known.insert(expected.name);
      tensors.emplace_back(expected.name, values);
    }
  }
  for (const SafetensorsEntry& entry : source.entries()) {
    if (!known.contains(entry.name)) {
      throw UserError(source.path(), "holds " + in_quotes(entry.name),
                      {"a " + file.adapter + " adapter for a model of " + std::to_string(architecture.num_layers) +
                       " layers has no such tensor"});
    }
  }
  return tensors;
}

// The directory that holds the two files: `dir` itself, or the newest complete checkpoint of the run that it is.
fs::path find_adapters(const std::string& dir) {
  std::error_code ignored;
  if (!fs::is_directory(dir, ignored)) {
    throw UserError(dir, fs::exists(dir, ignored) ? "not a directory" : "no such directory",
                    {"expected a run, a checkpoint or an adapter directory"});
  }
  if (fs::exists(fs::path(dir) / kTensorFile, ignored)) {
    // A checkpoint is sealed; a sidecar, which people copy about, need not be.
    const std::string problem = fs::exists(fs::path(dir) / "manifest.json", ignored) ? checkpoint_problem(dir) : "";
    if (!problem.empty()) throw UserError(dir, "damaged checkpoint: " + problem);
    return dir;
  }
  if (fs::is_directory(fs::path(dir) / "checkpoints", ignored)) {
    const std::string newest = newest_checkpoint(dir);
    if (newest.empty()) throw UserError(dir, "the run has no complete checkpoint");
    return newest;
  }
  throw UserError(dir, std::string("has no ") + kTensorFile + " and no checkpoints",
                  {"expected a run, a checkpoint or an adapter directory"});
}

}  // namespace

bool has_turned_channels(const AdapterFile& file) {
  return std::any_of(file.tensors.begin(), file.tensors.end(),
                     [](const auto& item) { return item.first == kFirstAngle; });
}

void write_adapter_file(const std::string& dir, const AdapterFile& file) {
  FieldWriter writer;
  writer.config = {{"format", kFormat}, {"version", kVersion}};
  visit_fields(file, writer);
  writer.config["created_by"] = kCreatedBy;
  std::map<std::string, std::string> metadata;
  for (const auto& item : writer.config.items()) metadata[item.key()] = metadata_text(item.value());
  write_safetensors((fs::path(dir) / kTensorFile).string(), file.tensors, metadata);
  write_file((fs::path(dir) / kConfigFile).string(), writer.config.dump(2) + "\n");
}

AdapterFile read_adapter_file(const std::string& dir, const Architecture& architecture,
                              const std::string& expected_base_sha256) {
  const fs::path found = find_adapters(dir);
  const std::string config_path = (found / kConfigFile).string();
  const json config = read_json_object(config_path);
  const auto source = SafetensorsFile::open((found / kTensorFile).string());

  AdapterFile file;
  FieldReader reader(config, *source, config_path);
  reader.format_and_version();
  visit_fields(file, reader);
  if (!expected_base_sha256.empty() && file.base_sha256 != expected_base_sha256) {
    throw UserError(
        config_path,
        "these adapters belong to another base model: " + in_quotes(file.base_model) + " (" +
            in_quotes(file.base_sha256.substr(0, 12)) + "...)",
        {"this model is '" + expected_base_sha256.substr(0, 12) + "...'",
         "adapters fit only the weights they were trained on: name that model (dms eval has --ignore-base-hash)"});
  }
  file.tensors = read_tensors(*source, file, architecture);
  return file;
}

}  // namespace dms
