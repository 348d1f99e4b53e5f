// The table of wrong inputs: what is spoiled, what is run, and what the user must read.
#pragma once

#include <string>
#include <vector>

#include "tests/support/child_process.h"
#include "tests/support/sandbox.h"

namespace dms {

struct BadInput {
  std::string name;          // a test's name
  Spoil spoil;               // applied to a sandbox of valid files
  std::string command;       // after `dms`, split at spaces; run in the sandbox
  std::string first_line;    // of the message must contain this
  std::string details = "";  // somewhere in the message; "" = not checked
  int exit_code = 2;
  ChildOptions limits = {};
  std::string may_leave = "";  // a file or directory that may remain, for what was finished before a full disk
};

const std::vector<BadInput>& bad_inputs();

}  // namespace dms
