#include "tools/report_head_map.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "tools/number_text.h"

namespace dms {
namespace {

constexpr std::array<int, kNumShareLevels> kUpperEdgePercent = {1, 2, 5, 10, 20, 35, 50, 75, 100};
constexpr int kFirstDarkLevel = 6;  // from here on style.css writes on the colour in --k-high-ink

// One row or column of cells a head, one more for the mean over heads, and where cell (layer, head) lies.
struct Grid {
  LayerDirection direction;
  double left, top, cell_width, cell_height;
  double gap_before_mean;

  std::pair<double, double> corner(size_t layer, size_t head, bool is_mean) const {
    const double l = static_cast<double>(layer), h = static_cast<double>(head);
    const double gap = is_mean ? gap_before_mean : 0;
    if (direction == LayerDirection::right) return {left + l * cell_width, top + h * cell_height + gap};
    return {left + h * cell_width + gap, top + l * cell_height};
  }
};

std::string number(double value) { return significant_text(std::round(value * 10) / 10, 6); }

std::string cell_text(double rate) {
  if (!std::isfinite(rate)) return "–";
  return std::to_string(std::lround(100 * rate));
}

std::string label(double x, double y, const char* anchor, const std::string& text) {
  return "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" text-anchor=\"" + anchor + "\">" + escape_html(text) +
         "</text>\n";
}

std::string cell(const Grid& grid, size_t layer, size_t head, bool is_mean, double rate) {
  const auto [x, y] = grid.corner(layer, head, is_mean);
  const int level = share_level(rate);
  const std::string tip = "layer " + std::to_string(layer) + ", " +
                          (is_mean ? "mean of its heads" : "KV head " + std::to_string(head)) + "\nkeeps " +
                          percent_text(rate);
  std::string svg = "<rect class=\"hit cell k" + std::to_string(level) + "\" x=\"" + number(x + 0.5) + "\" y=\"" +
                    number(y + 0.5) + "\" width=\"" + number(grid.cell_width - 1) + "\" height=\"" +
                    number(grid.cell_height - 1) + "\" rx=\"2\"><title>" + escape_html(tip) + "</title></rect>\n";
  if (grid.cell_width >= 21 && grid.cell_height >= 14) {
    svg += "<text class=\"on-cell " + std::string(level >= kFirstDarkLevel ? "k-high" : "k-low") + "\" x=\"" +
           number(x + grid.cell_width / 2) + "\" y=\"" + number(y + grid.cell_height / 2 + 4) +
           "\" text-anchor=\"middle\">" + cell_text(rate) + "</text>\n";
  }
  return svg;
}

}  // namespace

int share_level(double share) {
  if (!std::isfinite(share)) return 0;
  for (int level = 0; level < kNumShareLevels; ++level) {
    if (100 * share < kUpperEdgePercent[static_cast<size_t>(level)]) return level;
  }
  return kNumShareLevels - 1;
}

std::string share_level_label(int level) {
  const int upper = kUpperEdgePercent[static_cast<size_t>(level)];
  if (level == 0) return "<" + std::to_string(upper);
  return std::to_string(kUpperEdgePercent[static_cast<size_t>(level - 1)]) + "–" + std::to_string(upper);
}

Markup draw_head_map(const std::vector<std::vector<double>>& keep_rate_LG, LayerDirection direction, int width,
                     const std::string& css_class) {
  const size_t num_layers = keep_rate_LG.size(), num_heads = keep_rate_LG[0].size();
  const bool right = direction == LayerDirection::right;
  const size_t num_columns = right ? num_layers : num_heads + 1;
  Grid grid{};
  grid.direction = direction;
  grid.left = right ? 62 : 52;
  grid.top = 22;
  grid.gap_before_mean = 6;
  const double available = width - grid.left - (right ? 0 : grid.gap_before_mean) - 1;
  grid.cell_width = std::min(right ? 44.0 : 78.0, available / static_cast<double>(num_columns));
  grid.cell_height = right ? std::clamp(grid.cell_width * 0.8, 15.0, 26.0) : 16;
  const double height = grid.top + 2 +
                        (right ? static_cast<double>(num_heads + 1) * grid.cell_height + grid.gap_before_mean
                               : static_cast<double>(num_layers) * grid.cell_height);

  std::string svg = "<svg class=\"" + css_class + "\" viewBox=\"0 0 " + std::to_string(width) + " " + number(height) +
                    "\" role=\"img\" aria-label=\"Share of keys that each key-value head keeps, by layer and head\">\n";
  // Labels of layers thin out where cells are narrower than a label.
  const size_t every = right ? static_cast<size_t>(std::ceil(17 / grid.cell_width)) : 1;
  for (size_t layer = 0; layer < num_layers; layer += every) {
    const auto [x, y] = grid.corner(layer, 0, false);
    svg += right ? label(x + grid.cell_width / 2, grid.top - 7, "middle", std::to_string(layer))
                 : label(grid.left - 8, y + grid.cell_height / 2 + 4, "end", std::to_string(layer));
  }
  for (size_t head = 0; head <= num_heads; ++head) {
    const bool is_mean = head == num_heads;
    const std::string name = is_mean ? "mean" : "head " + std::to_string(head);
    const auto [x, y] = grid.corner(0, head, is_mean);
    svg += right ? label(grid.left - 8, y + grid.cell_height / 2 + 4, "end", name)
                 : label(x + grid.cell_width / 2, grid.top - 7, "middle",
                         is_mean || grid.cell_width >= 40 ? name : std::to_string(head));
  }
  svg += label(grid.left - 8, grid.top - 7, "end", "layer");
  for (size_t layer = 0; layer < num_layers; ++layer) {
    const std::vector<double>& keep_rate_G = keep_rate_LG[layer];
    for (size_t head = 0; head < num_heads; ++head) svg += cell(grid, layer, head, false, keep_rate_G[head]);
    const double mean = std::accumulate(keep_rate_G.begin(), keep_rate_G.end(), 0.0) / static_cast<double>(num_heads);
    svg += cell(grid, layer, num_heads, true, mean);
  }
  return {svg + "</svg>"};
}

}  // namespace dms
