// The report: one self-contained HTML page about one run.
#pragma once

#include <string>

#include "tools/report_input.h"

namespace dms {

// The whole page.  A part whose input is missing says which command would provide it.
std::string report_html(const ReportInput& input);

}  // namespace dms
