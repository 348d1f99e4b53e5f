#include "checkpoints/export.h"

#include <algorithm>
#include <filesystem>

#include "checkpoints/export_fastdms.h"
#include "checkpoints/export_hf.h"
#include "checkpoints/export_kvpress.h"
#include "checkpoints/export_nvidia.h"
#include "checkpoints/export_sidecar.h"
#include "checkpoints/model_dir.h"
#include "data/staged_file.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

namespace fs = std::filesystem;

// Of layouts that hold everything a recipe can ask for.
std::string no_objection(const Architecture&, const AdapterFile&) { return ""; }

// Whether `path` is `dir` or lies in it, symbolic links followed.
bool is_inside(const std::string& path, const std::string& dir) {
  const fs::path inner = fs::weakly_canonical(path), outer = fs::weakly_canonical(dir);
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

}  // namespace

const std::vector<ExportTarget>& export_targets() {
  static const std::vector<ExportTarget> targets = {
      {"hf", "a model for transformers, self-contained: weights, adapters, code, tokenizer", no_objection, write_hf},
      {"nvidia", "a model for NVIDIA Model-Optimizer's DMS code (Qwen3), which is not included", nvidia_objection,
       write_nvidia},
      {"fastdms", "a model for the FastDMS runtime (Llama, Qwen3), neuron adapters only", fastdms_objection,
       write_fastdms},
      {"kvpress", "a press for KVPress: one Python file and the adapters, to hook into the base model",
       kvpress_objection, write_kvpress},
      {"sidecar", "the adapters alone, for `dms` and for people who have the base model", no_objection, write_sidecar},
  };
  return targets;
}

const ExportTarget& find_export_target(const std::string& name) {
  std::vector<std::string> names;
  std::string all;
  for (const ExportTarget& target : export_targets()) {
    if (target.name == name) return target;
    names.push_back(target.name);
    all += (all.empty() ? "" : ", ") + target.name;
  }
  std::vector<std::string> details = {"targets: " + all};
  if (const std::string hint = did_you_mean(name, names); !hint.empty()) details.push_back(hint);
  throw UserError("--to", "no export target '" + name + "'", details);
}

ExportInput read_export_input(const std::string& model_dir, const std::string& adapters_dir, bool check_base) {
  ExportInput input;
  input.model_dir = model_dir;
  input.adapters_dir = adapters_dir;
  input.architecture = open_weights(model_dir, at::kFloat)->architecture();
  input.adapters = read_adapter_file(adapters_dir, input.architecture, check_base ? base_model_hash(model_dir) : "");
  return input;
}

void write_export(const ExportTarget& target, const ExportInput& input, const std::string& out, bool replace) {
  if (const std::string reason = target.objection(input.architecture, input.adapters); !reason.empty()) {
    throw UserError("--to " + target.name, "this layout cannot hold these adapters", {reason});
  }
  std::error_code ignored;
  if (fs::exists(out, ignored)) {
    if (!fs::is_directory(out, ignored)) throw UserError(out, "exists and is not a directory");
    for (const std::string& source : {input.model_dir, input.adapters_dir}) {
      if (is_inside(source, out)) {
        throw UserError(out, "holds " + source + ", from which the export is made", {"choose another directory"});
      }
    }
    if (!replace && !fs::is_empty(out, ignored)) {
      throw UserError(out, "exists already", {"choose another directory, or replace it with --force"});
    }
  }
  StagedDir staged(out);
  target.write(input, staged.path());
  staged.commit();
}

}  // namespace dms
