#include "tools/inspect.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "recipes/strict_json.h"
#include "recipes/user_error.h"
#include "tools/number_text.h"

namespace dms {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

bool holds(const fs::path& dir, const char* name) {
  std::error_code ignored;
  return fs::is_regular_file(dir / name, ignored);
}

bool is_run(const fs::path& path) { return holds(path, "recipe.yaml"); }
// By what it holds or, when that is damaged, by its place.
bool is_checkpoint(const fs::path& path) {
  if (holds(path, "manifest.json") && holds(path, "dms_config.json")) return true;
  std::error_code ignored;
  return fs::is_directory(path, ignored) && path.parent_path().filename() == "checkpoints" &&
         path.filename().string().starts_with("step-");
}

bool is_adapters(const fs::path& path) { return holds(path, "dms_config.json"); }

bool is_hf_export(const fs::path& path) {
  if (!holds(path, "config.json")) return false;
  const nlohmann::json config = read_json_object((path / "config.json").string());
  const auto type = config.find("model_type");
  return type != config.end() && type->is_string() && type->get<std::string>().starts_with("dms_");
}

bool is_model(const fs::path& path) { return holds(path, "config.json"); }

// By the signature that an HDF5 file without a user block starts with.
bool is_hdf5(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) return false;
  constexpr std::string_view kSignature = "\x89HDF\r\n\x1a\n";
  std::array<char, kSignature.size()> begin{};
  std::ifstream(path, std::ios::binary).read(begin.data(), begin.size());
  return std::string_view(begin.data(), begin.size()) == kSignature || path.extension() == ".h5";
}

struct Kind {
  const char* name;
  const char* mark;  // how it is told from the others, for people
  bool (*recognise)(const fs::path& path);
  void (*describe)(const std::string& path, ordered_json& description);
};

// The first that recognises a path wins.
constexpr std::array<Kind, 6> kKinds = {{
    {"run directory", "recipe.yaml", is_run, describe_run},
    {"checkpoint", "manifest.json and dms_config.json", is_checkpoint, describe_checkpoint},
    {"adapter directory", "dms_config.json", is_adapters, describe_adapters},
    {"export for transformers", "config.json with a dms_* model type", is_hf_export, describe_hf_export},
    {"model directory", "config.json", is_model, describe_model},
    {"token file", "HDF5, made by `dms prepare`", is_hdf5, describe_token_file},
}};

const Kind* kind_of(const fs::path& path) {
  const auto kind = std::find_if(kKinds.begin(), kKinds.end(), [&](const Kind& k) { return k.recognise(path); });
  return kind == kKinds.end() ? nullptr : &*kind;
}

[[noreturn]] void throw_unknown(const std::string& path) {
  std::vector<std::string> details;
  std::error_code ignored;
  std::vector<fs::path> entries;
  for (const fs::directory_entry& entry : fs::directory_iterator(path, ignored)) entries.push_back(entry.path());
  std::sort(entries.begin(), entries.end());
  for (const fs::path& entry : entries) {
    try {
      if (const Kind* kind = kind_of(entry)) details.push_back("inside: " + entry.string() + ", a " + kind->name);
    } catch (const UserError&) {  // its own inspection will say what is wrong with it
    }
  }
  details.push_back("it knows:");
  for (const Kind& kind : kKinds) details.push_back(std::string("  ") + kind.name + " (" + kind.mark + ")");
  throw UserError(path, "is nothing that `dms inspect` knows", details);
}

constexpr size_t kMaxShown = 20;  // of a list in the printed form; the JSON has all

bool ends_with(const std::string& name, std::string_view suffix) { return std::string_view(name).ends_with(suffix); }

std::string value_text(const std::string& name, const ordered_json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_null()) return "unknown";
  if (value.is_number_integer()) {
    return ends_with(name, "bytes") || ends_with(name, "bytes_per_token") ? bytes_text(value.get<double>())
                                                                          : count_text(value.get<int64_t>());
  }
  if (value.is_number()) return significant_text(value.get<double>(), 4);
  if (value.empty()) return "none";
  std::string text;
  size_t num_shown = 0;
  for (const auto& [key, item] : value.items()) {
    if (!text.empty()) text += ", ";
    if (num_shown++ == kMaxShown)
      return text + "and " + count_text(static_cast<int64_t>(value.size() - kMaxShown)) + " more";
    text += value.is_array() ? value_text(name, item) : key + " " + value_text(key, item);
  }
  return text;
}

void append_members(const ordered_json& object, size_t indent, std::string& text) {
  size_t width = 0;
  for (const auto& [name, value] : object.items()) width = std::max(width, name.size());
  for (const auto& [name, value] : object.items()) {
    std::string label = name;
    std::replace(label.begin(), label.end(), '_', ' ');
    const std::string begin = std::string(indent, ' ') + label;
    if (value.is_object() && !value.empty()) {
      text += begin + "\n";
      append_members(value, indent + 2, text);
    } else if (value.is_array() && !value.empty() && value[0].is_object()) {
      text += begin + "\n";
      for (const ordered_json& item : value) text += std::string(indent + 2, ' ') + value_text(name, item) + "\n";
    } else {
      text += begin + std::string(width - name.size() + 2, ' ') + value_text(name, value) + "\n";
    }
  }
}

}  // namespace

ordered_json inspect(const std::string& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) throw UserError(path, "does not exist");
  // Without a trailing slash, so that the name of a checkpoint's directory can be seen.
  fs::path normal = fs::path(path).lexically_normal();
  if (!normal.has_filename()) normal = normal.parent_path();
  const Kind* kind = kind_of(normal);
  if (kind == nullptr) throw_unknown(path);
  ordered_json description = {{"kind", kind->name}, {"path", path}};
  kind->describe(normal.string(), description);
  return description;
}

std::string description_text(const ordered_json& description) {
  std::string text =
      description.at("path").get<std::string>() + ": " + description.at("kind").get<std::string>() + "\n";
  ordered_json members = description;
  members.erase("path");
  members.erase("kind");
  append_members(members, 2, text);
  return text;
}

}  // namespace dms
