// The command lines that make, evaluate and report a run again, as a reader would paste them into a shell.
#pragma once

#include <string>

#include "tools/report_input.h"

namespace dms {

std::string train_command(const ReportInput& input);
std::string eval_command(const ReportInput& input);
std::string report_command(const ReportInput& input);

}  // namespace dms
