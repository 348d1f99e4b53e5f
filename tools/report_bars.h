// Bars with their names and values, as inline SVG in the report's style: a handful of figures that have no axis in common.
#pragma once

#include <string>
#include <vector>

#include "tools/report_template.h"

namespace dms {

struct Bar {
  std::string name;
  std::string style;  // CSS class: dms, streaming, sliding
  double value = 0;   // not negative
  std::string label;  // the value in words, behind the bar
};

// `description`: what a screen reader says.
Markup draw_bars(const std::vector<Bar>& bars, const std::string& description, int width);

}  // namespace dms
