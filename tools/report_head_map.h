// The layer x head map of keep rates, and the colour scale that it shares with the sample text.
#pragma once

#include <string>
#include <vector>

#include "tools/report_template.h"

namespace dms {

// Shares from 0 to 1 fall into levels whose edges lie close together near 0, where most heads are.  Level i is drawn
// with the CSS class k<i>; it is darker (in the dark scheme: brighter) the more is kept.
inline constexpr int kNumShareLevels = 9;
int share_level(double share);             // 0 .. kNumShareLevels - 1
std::string share_level_label(int level);  // in percent: "2–5"

enum class LayerDirection { right, down };

// keep_rate_LG must not be empty.  `css_class`: on which screens it is shown (tools/report/style.css).
Markup draw_head_map(const std::vector<std::vector<double>>& keep_rate_LG, LayerDirection direction, int width,
                     const std::string& css_class);

}  // namespace dms
