// The report's line charts as inline SVG, coloured by the classes of tools/report/style.css, so that they follow the
// light and the dark scheme.  A chart is drawn for a width in CSS pixels: one that is scaled down is unreadable.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tools/report_template.h"

namespace dms {

enum class AxisNumbers { plain, percent, bytes };

struct ChartSeries {
  std::string name;
  std::string style;                              // CSS class: dms, streaming, sliding
  std::vector<std::pair<double, double>> points;  // by rising x; a y that is not finite breaks the line
};

struct LineChart {
  std::string description;  // what a screen reader says
  std::string x_label, y_label;
  AxisNumbers y_numbers = AxisNumbers::plain;
  std::vector<ChartSeries> series;
  enum class Scale {
    from_zero,
    fitted,       // linear around the values
    logarithmic,  // values below the lowest tick are drawn on it
  } y_scale = Scale::from_zero;
  std::vector<std::pair<double, std::string>> marks;  // vertical lines with a label
  bool x_log2 = false;                                // x > 0, with a tick at each power of two
  bool dots = false;                                  // also mark the points
  double band_from = 0, band_to = 0;                  // a shaded range of x; none when equal
  std::string band_label;
};

// Logarithmic when the typical values of the series differ so much that a linear axis would flatten the smaller ones,
// else from zero.
LineChart::Scale fitting_scale(const std::vector<ChartSeries>& series);

// At most `max_points` points, each the mean of equally many neighbours.
std::vector<std::pair<double, double>> thinned(const std::vector<std::pair<double, double>>& points, size_t max_points);

struct ChartSize {
  int width = 0, height = 0;
  std::string css_class;  // for-wide, for-narrow, or empty: shown on any screen
};

Markup draw_line_chart(const LineChart& chart, const ChartSize& size);

}  // namespace dms
