#include "tools/command_options.h"

#include <CLI/CLI.hpp>

#include <optional>

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

int64_t bytes_given(const std::string& flag, const std::string& text, const std::string& example, Auto automatic) {
  const std::optional<int64_t> bytes = parse_bytes_or_auto(text);
  if (!bytes || (automatic == Auto::refused && *bytes < 0)) {
    throw UserError(flag, "is '" + text + "'", {"expected bytes, such as " + example});
  }
  return *bytes;
}

}  // namespace dms
