// The table of wrong inputs: what is spoiled, what is run, and what the user must read.
#pragma once

#include <string>
#include <vector>

#include "tests/support/child_process.h"
#include "tests/support/sandbox.h"

namespace dms {

struct BadInput {
  std::string name;     // a test's name
  Spoil spoil;          // applied to a sandbox of valid files
  std::string command;  // after `dms`, split at spaces; run in the sandbox
  std::string first_line;   // of stderr, after "dms COMMAND: ": must contain this
  std::string details = "";  // somewhere in stderr; "" = not checked
  int exit_code = 2;
  ChildOptions limits = {};
};

const std::vector<BadInput>& bad_inputs();

// What the sandbox holds before it is spoiled: a model, texts, token files, a recipe, a run.  Made once.
const std::map<std::string, std::string>& valid_files();

}  // namespace dms
