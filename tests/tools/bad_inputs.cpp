#include "tests/tools/bad_inputs.h"

#include "tests/support/tiny_model.h"

namespace dms {
namespace {

std::map<std::string, std::string> make_valid_files() {
  std::map<std::string, std::string> files;
  for (const auto& [name, bytes] : tiny_model_files()) files["model/" + name] = bytes;
  return files;
}

std::vector<BadInput> make_bad_inputs() {
  return {
      // The command line
      {"NoCommand", nothing_spoiled(), "", "no command given", "commands: "},
      {"MisspelledCommand", nothing_spoiled(), "exprot", "unknown command 'exprot'", "did you mean 'export'?"},
      {"UnknownCommand", nothing_spoiled(), "frobnicate", "unknown command 'frobnicate'", "commands: "},
      {"MisspelledGlobalFlag", nothing_spoiled(), "--versoin", "unknown flag '--versoin'", "did you mean '--version'?"},
      {"MisspelledFlag", nothing_spoiled(), "export --run run --too hf --out x", "unknown flag '--too'",
       "did you mean '--to'?"},
      {"MissingFlag", nothing_spoiled(), "export --to hf --out x", "--run is required", "'dms export --help'"},
      {"StrayArgument", nothing_spoiled(), "export --run run --to hf --out x stray", "unexpected argument 'stray'"},
  };
}

}  // namespace

const std::map<std::string, std::string>& valid_files() {
  static const std::map<std::string, std::string> files = make_valid_files();
  return files;
}

const std::vector<BadInput>& bad_inputs() {
  static const std::vector<BadInput> table = make_bad_inputs();
  return table;
}

}  // namespace dms
