// The parts of the report: key figures, quality against the baselines, memory, head map, sample text, training curves,
// data sets.  Each is complete in itself; where its input is missing it says which command provides it.
#pragma once

#include "tools/report_input.h"
#include "tools/report_template.h"

namespace dms {

struct ReportPage {
  const ReportInput& in;
  const ReportTemplate& blocks;
};

Markup tiles_section(const ReportPage& page);
Markup quality_section(const ReportPage& page);
Markup memory_section(const ReportPage& page);
Markup heads_section(const ReportPage& page);
Markup sample_section(const ReportPage& page);
Markup training_section(const ReportPage& page);
Markup sets_section(const ReportPage& page);

}  // namespace dms
