#include "tools/report_bars.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace dms {

namespace {

constexpr int kRowHeight = 42, kBarHeight = 15;  // CSS pixels; the text stands above its bar

std::string text_element(double x, double y, const char* anchor, const std::string& text) {
  char open[120];
  std::snprintf(open, sizeof open, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
  return open + escape_html(text) + "</text>\n";
}

}  // namespace

Markup draw_bars(const std::vector<Bar>& bars, const std::string& description, int width) {
  double largest = 0.0;
  for (const Bar& bar : bars) largest = std::max(largest, std::isfinite(bar.value) ? bar.value : 0.0);
  const int height = kRowHeight * static_cast<int>(bars.size());
  std::string svg = "<svg viewBox=\"0 0 " + std::to_string(width) + " " + std::to_string(height) +
                    "\" role=\"img\" aria-label=\"" + escape_html(description) + "\">\n";
  for (size_t i = 0; i < bars.size(); ++i) {
    const Bar& bar = bars[i];
    const double top = kRowHeight * static_cast<double>(i);
    const double share = largest > 0.0 && std::isfinite(bar.value) ? std::max(0.0, bar.value) / largest : 0.0;
    svg += text_element(0, top + 15, "start", bar.name);
    svg += text_element(width, top + 15, "end", bar.label);
    char rectangle[160];
    std::snprintf(rectangle, sizeof rectangle,
                  "<rect class=\"bar %s\" x=\"0\" y=\"%.1f\" width=\"%.1f\" height=\"%d\"/>\n", bar.style.c_str(),
                  top + 20, width * share, kBarHeight);
    svg += rectangle;
  }
  return {svg + "</svg>"};
}

}  // namespace dms
