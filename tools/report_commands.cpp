#include "tools/report_commands.h"

namespace dms {
namespace {

// A path as one word of a shell command.
std::string shell_word(const std::string& word) {
  const bool plain = !word.empty() && word.find_first_not_of(
                                          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                          "0123456789_-./=:,@%+") == std::string::npos;
  if (plain) return word;
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted + "'";
}

std::string eval_json(const ReportInput& input) {
  return shell_word(input.has_eval ? input.eval_path : input.run_dir + "/eval.json");
}

}  // namespace

std::string train_command(const ReportInput& input) {
  return "dms train " + shell_word(input.run_dir + "/recipe.yaml") + " --run-dir NEW_RUN_DIR";
}

std::string eval_command(const ReportInput& input) {
  std::string command = "dms eval --model " + (input.model_path.empty() ? "MODEL_DIR" : shell_word(input.model_path)) +
                        " --adapters " + shell_word(input.run_dir) + " \\\n  --data";
  if (input.held_out_paths.empty()) command += " HELD_OUT.h5";
  for (const std::string& path : input.held_out_paths) command += " " + shell_word(path);
  return command + " \\\n  --json " + eval_json(input);
}

std::string report_command(const ReportInput& input) {
  return "dms report --run " + shell_word(input.run_dir) + " --summary " + eval_json(input);
}

}  // namespace dms
