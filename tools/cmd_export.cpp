#include <CLI/CLI.hpp>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "checkpoints/export.h"
#include "data/staged_file.h"
#include "recipes/user_error.h"
#include "recipes/yaml_tree.h"
#include "tools/commands.h"

namespace dms {

namespace {

struct ExportFlags {
  std::string run, model, target, out, evaluation;
  bool force = false, ignore_base_hash = false;
};

namespace fs = std::filesystem;

const YamlNode* find_key(const YamlNode& mapping, const std::string& name) {
  for (const auto& [key, value] : mapping.entries) {
    if (key->text == name) return value.get();
  }
  return nullptr;
}

// model.path of the recipe that a run keeps beside its checkpoints; `dir` is the run or one of its checkpoints.
// Looked up by itself, so that any recipe will do, also one of another release.
std::string base_model_of(const std::string& dir) {
  for (const fs::path& place : {fs::path(dir), fs::path(dir) / ".." / ".."}) {
    const std::string recipe = (place / "recipe.yaml").lexically_normal().string();
    std::error_code ignored;
    if (!fs::is_regular_file(recipe, ignored)) continue;
    const auto tree = parse_yaml_tree(recipe, read_file(recipe));
    const YamlNode* model = find_key(*tree, "model");
    const YamlNode* path = model == nullptr ? nullptr : find_key(*model, "path");
    if (path != nullptr && path->kind == YamlNode::Kind::scalar) return path->text;
    throw UserError(recipe, "has no model.path", {"name the base model with --model"});
  }
  throw UserError(dir, "has no recipe.yaml that says which model the adapters belong to",
                  {"name the base model with --model"});
}

void run_export(const ExportFlags& flags) {
  const ExportTarget& target = find_export_target(flags.target);
  const std::string model = flags.model.empty() ? base_model_of(flags.run) : flags.model;
  ExportInput input = read_export_input(model, flags.run, !flags.ignore_base_hash);
  input.evaluation = flags.evaluation;
  write_export(target, input, flags.out, flags.force);
  std::printf("%s: %s\n", flags.out.c_str(), target.help.c_str());
}

}  // namespace

void add_export(CLI::App& program) {
  auto flags = std::make_shared<ExportFlags>();
  CLI::App* command = program.add_subcommand("export", "Write a trained evictor in the layout of a tool that runs it.");
  std::string targets = "Layout to write:";
  for (const ExportTarget& target : export_targets()) targets += "\n" + target.name + ": " + target.help;
  command->add_option("--run", flags->run, "Run, checkpoint or adapter directory")->required();
  command->add_option("--to", flags->target, targets)->required();
  command->add_option("--out", flags->out, "Directory to make")->required();
  command->add_option("--model", flags->model, "Base model directory (default: model.path of the run's recipe)");
  command->add_option("--eval", flags->evaluation, "Output of `dms eval --json`: its figures go into the README");
  command->add_flag("--force", flags->force, "Replace --out if it exists");
  command->add_flag("--ignore-base-hash", flags->ignore_base_hash, "Accept adapters trained on other weights");
  command->footer("Example:\n  dms export --run run --to hf --out export-hf");
  command->callback([flags] { run_export(*flags); });
}

}  // namespace dms
