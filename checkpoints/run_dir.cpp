#include "checkpoints/run_dir.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/sha256.h"
#include "data/staged_file.h"
#include "recipes/strict_json.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kManifestVersion = 1;
constexpr const char* kManifest = "manifest.json";
constexpr std::string_view kStepPrefix = "step-";

std::string problem_with_file(const fs::path& path, const json& listed) {
  const std::string name = in_quotes(path.filename().string());
  const auto bytes = listed.find("bytes"), sha256 = listed.find("sha256");
  if (!listed.is_object() || bytes == listed.end() || !bytes->is_number_unsigned() || sha256 == listed.end() ||
      !sha256->is_string()) {
    return std::string(kManifest) + " lists " + name + " as " + shown(listed);
  }
  std::error_code error;
  const uint64_t found_bytes = fs::file_size(path, error);
  if (error) return name + " is missing";
  if (found_bytes != bytes->get<uint64_t>()) {
    return name + " has " + std::to_string(found_bytes) + " bytes, expected " + std::to_string(bytes->get<uint64_t>());
  }
  if (sha256_file(path.string()) != sha256->get<std::string>()) {
    return name + " does not have the SHA-256 that " + kManifest + " lists: it has been damaged or changed";
  }
  return "";
}

}  // namespace

std::string checkpoint_path(const std::string& run_dir, int64_t step) {
  char name[32];
  std::snprintf(name, sizeof(name), "step-%06lld", static_cast<long long>(step));
  return (fs::path(run_dir) / "checkpoints" / name).string();
}

std::vector<CheckpointDir> list_checkpoints(const std::string& run_dir) {
  std::vector<CheckpointDir> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(fs::path(run_dir) / "checkpoints", error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kStepPrefix)) continue;
    const char *digits = name.data() + kStepPrefix.size(), *end = name.data() + name.size();
    int64_t step = -1;
    const auto [stop, parse_error] = std::from_chars(digits, end, step);
    // The name must be the one this program gives: that leaves out step-12.partial.4711 and step-12.
    if (parse_error != std::errc() || stop != end || step < 0) continue;
    if (checkpoint_path(run_dir, step) != entry.path().string()) continue;
    found.push_back({step, entry.path().string()});
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.step > b.step; });
  return found;
}

void write_manifest(const std::string& dir, int64_t step) {
  nlohmann::ordered_json manifest = {{"version", kManifestVersion}, {"step", step}};
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(dir)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  manifest["files"] = nlohmann::ordered_json::object();
  for (const std::string& name : names) {
    const std::string path = (fs::path(dir) / name).string();
    manifest["files"][name] = {{"bytes", fs::file_size(path)}, {"sha256", sha256_file(path)}};
  }
  write_file((fs::path(dir) / kManifest).string(), manifest.dump(2) + "\n");
}

std::string checkpoint_problem(const std::string& dir) {
  const fs::path manifest_path = fs::path(dir) / kManifest;
  try {
    if (!fs::exists(manifest_path)) return std::string("has no ") + kManifest + ": it was not finished";
    const json manifest = read_json_object(manifest_path.string());
    if (manifest.value("version", json()) != kManifestVersion) {
      return std::string(kManifest) + " has version " + shown(manifest.value("version", json())) + ", expected " +
             std::to_string(kManifestVersion);
    }
    const json step = manifest.value("step", json()), files = manifest.value("files", json());
    if (!step.is_number_unsigned()) return std::string(kManifest) + " has no step";
    const std::string expected_name = fs::path(checkpoint_path("", step.get<int64_t>())).filename().string();
    if (const fs::path name = fs::absolute(dir).lexically_normal().filename();
        name.string().starts_with(kStepPrefix) && name != expected_name) {
      return std::string(kManifest) + " is that of step " + shown(step);
    }
    if (!files.is_object() || files.empty()) return std::string(kManifest) + " lists no files";
    for (const auto& item : files.items()) {
      if (item.key().find('/') != std::string::npos || item.key().find('\0') != std::string::npos) {
        return std::string(kManifest) + " lists " + in_quotes(item.key()) + ", which is not the name of a file";
      }
      const std::string problem = problem_with_file(fs::path(dir) / item.key(), item.value());
      if (!problem.empty()) return problem;
    }
    return "";
  } catch (const UserError& error) {
    return error.what();
  }
}

std::string newest_checkpoint(const std::string& run_dir) {
  for (const CheckpointDir& checkpoint : list_checkpoints(run_dir)) {
    const std::string problem = checkpoint_problem(checkpoint.path);
    if (problem.empty()) return checkpoint.path;
    std::fprintf(stderr, "warning: skipping checkpoint %s: %s\n", checkpoint.path.c_str(), problem.c_str());
  }
  return "";
}

}  // namespace dms
