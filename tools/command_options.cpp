#include "tools/command_options.h"

#include <CLI/CLI.hpp>

#include <cstdio>
#include <optional>

#include "data/staged_file.h"
#include "recipes/option_value.h"
#include "recipes/user_error.h"

namespace dms {

void add_compute_options(CLI::App& command, std::string& dtype, std::string& device) {
  command.add_option("--dtype", dtype, "auto, float32 or bfloat16")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->capture_default_str();
  command.add_option("--device", device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
}

void add_dtype_option(CLI::App& command, ComputeDtype& dtype) {
  command
      .add_option_function<std::string>(
          "--dtype",
          [&dtype](const std::string& name) {
            dtype = name == "float32"    ? ComputeDtype::float32
                    : name == "bfloat16" ? ComputeDtype::bfloat16
                                         : ComputeDtype::automatic;
          },
          "auto (default), float32 or bfloat16")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}));
}

void add_json_option(CLI::App& command, std::string& file) {
  command.add_option("--json", file, "Also write the figures to this file")->type_name("FILE");
}

void print_figures(const std::string& json, const std::string& file) {
  std::printf("%s\n", json.c_str());
  if (!file.empty()) write_file(file, json + "\n");
}

void add_target_ratio_options(CLI::App& command, TargetRatio& target) {
  CLI::Option* ratio = command.add_option("--target-ratio", target.ratio,
                                          "Move the evictor's threshold so that a text's keys shrink so many times "
                                          "(default: as trained)");
  ratio->check(CLI::Range(1.01, 1000.0))->type_name("X");
  CLI::Option* data = command.add_option("--calibration", target.data,
                                         "Token files that --target-ratio is found on: not what is measured");
  data->type_name("FILE")->needs(ratio);
  ratio->needs(data);
  command.add_option("--calibration-length", target.sequence_length, "Tokens of each such text")
      ->check(CLI::PositiveNumber)
      ->type_name("N")
      ->needs(ratio);
  command.add_option("--calibration-tokens", target.max_tokens, "Tokens a file, in evenly spaced texts")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command
      .add_flag("--per-head-offsets", target.per_head,
                "An offset for each KV head, so that every head shrinks alike; default: one for the model")
      ->needs(ratio);
}

int64_t bytes_given(const std::string& flag, const std::string& text, const std::string& example, Auto automatic) {
  const std::optional<int64_t> bytes = parse_bytes_or_auto(text);
  if (!bytes || (automatic == Auto::refused && *bytes < 0)) {
    throw UserError(flag, "is '" + text + "'", {"expected bytes, such as " + example});
  }
  return *bytes;
}

}  // namespace dms
