// CLI11's complaints about the command line in this program's words: what is wrong, and the nearest command or flag.
#pragma once

#include <string>

#include "recipes/user_error.h"

namespace CLI {
class App;
class ParseError;
}  // namespace CLI

namespace dms {

// "dms bench train-step", "dms train", or "dms" before a command was recognised.
std::string invocation_name(const CLI::App& program);

UserError usage_error(const CLI::App& program, const CLI::ParseError& error);

}  // namespace dms
