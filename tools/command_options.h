// Options that several commands have, and what their texts mean.
#pragma once

#include <cstdint>
#include <string>

#include "trainer/recipe.h"
#include "trainer/target_ratio.h"

namespace CLI {
class App;
}

namespace dms {

// --dtype and --device, "auto" unless given.
void add_compute_options(CLI::App& command, std::string& dtype, std::string& device);

// --dtype alone, for commands that say themselves what they run on.
void add_dtype_option(CLI::App& command, ComputeDtype& dtype);

// --json, and what it asks for: `json` on the terminal and, if named, in `file`.
void add_json_option(CLI::App& command, std::string& file);
void print_figures(const std::string& json, const std::string& file);

// --target-ratio, --calibration, --calibration-length, --calibration-tokens, --per-head-offsets.
void add_target_ratio_options(CLI::App& command, TargetRatio& target);

enum class Auto { allowed, refused };
// The bytes that `flag` was given, -1 for "auto".  Throws UserError, with `example` as what was expected.
int64_t bytes_given(const std::string& flag, const std::string& text, const std::string& example, Auto automatic);

}  // namespace dms
