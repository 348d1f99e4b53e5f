// What a sandbox holds before it is spoiled: model/, text.txt, train.h5, held-out.h5, run.yaml, run/ (two steps of it),
// sidecar/, eval.json.  Made once a process by the program itself: prepare, train, eval, export.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace dms {

// argv of `dms COMMAND`, split at spaces.
std::vector<std::string> command_line(const std::string& command);

const std::map<std::string, std::string>& valid_files();

}  // namespace dms
