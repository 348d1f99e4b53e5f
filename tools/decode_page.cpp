#include "tools/decode_page.h"

#include <algorithm>
#include <functional>
#include <set>

#include "tools/number_text.h"
#include "tools/report_assets.h"
#include "tools/report_chart.h"
#include "tools/report_template.h"

namespace dms {

namespace {

using Value = std::function<double(const DecodePoint&)>;

std::vector<ChartSeries> series_of(const std::vector<DecodePoint>& points, const Value& x, const Value& y) {
  std::vector<ChartSeries> all{{"dms, evicting", "dms", {}},
                               {"dms, eviction off", "streaming", {}},
                               {"transformers, DynamicCache", "sliding", {}}};
  for (const DecodePoint& point : points) {
    all[!point.is_dms ? 2 : point.evict ? 0 : 1].points.emplace_back(x(point), y(point));
  }
  std::erase_if(all, [](const ChartSeries& series) { return series.points.empty(); });
  for (ChartSeries& series : all) std::sort(series.points.begin(), series.points.end());
  return all;
}

Markup figure(const ReportTemplate& blocks, const LineChart& chart, const std::string& title) {
  Markup legend;
  for (const ChartSeries& series : chart.series) {
    legend.html += blocks.fill("legend-item", {{"series", series.style}, {"name", series.name}}).html;
  }
  const Markup svg = draw_line_chart(chart, {520, 300, ""});
  return blocks.fill("chart", {{"title", title}, {"caption", ""}, {"legend", legend}, {"svg", svg}});
}

Markup pair_of_charts(const ReportTemplate& blocks, const std::vector<DecodePoint>& points, const std::string& x_label,
                      const Value& x, const std::string& where) {
  LineChart speed;
  speed.x_label = x_label;
  speed.y_label = "tokens per second, all sequences";
  speed.series = series_of(points, x, [](const DecodePoint& point) { return point.tokens_per_s; });
  speed.description = "Tokens per second by engine over " + x_label + "; the numbers are in the benchmark's JSON";
  LineChart memory;
  memory.x_label = x_label;
  memory.y_label = "keys and values, allocated";
  memory.y_numbers = AxisNumbers::bytes;
  memory.series = series_of(points, x, [](const DecodePoint& point) { return point.kv_bytes; });
  memory.description = "Bytes of keys and values by engine over " + x_label;
  const Markup charts{figure(blocks, speed, "Speed" + where + ".").html +
                      figure(blocks, memory, "Memory" + where + ".").html};
  return blocks.fill("charts", {{"charts", charts}});
}

}  // namespace

std::string decode_page(const std::vector<DecodePoint>& points) {
  const ReportTemplate blocks(kReportPage);
  std::set<int64_t> contexts;
  for (const DecodePoint& point : points) contexts.insert(point.context);
  const auto sequences = [](const DecodePoint& point) { return static_cast<double>(point.sequences); };
  const auto context = [](const DecodePoint& point) { return static_cast<double>(point.context); };
  Markup charts;
  for (const int64_t tokens : contexts) {
    std::vector<DecodePoint> here;
    std::copy_if(points.begin(), points.end(), std::back_inserter(here),
                 [&](const DecodePoint& point) { return point.context == tokens; });
    if (here.size() <= 3) continue;  // one number of sequences an engine
    charts.html +=
        pair_of_charts(blocks, here, "sequences", sequences, " after " + count_text(tokens) + " tokens").html;
  }
  if (charts.html.empty()) charts = pair_of_charts(blocks, points, "tokens of context", context, "");
  return blocks.fill("decode-page", {{"style", Markup{std::string(kReportStyle)}}, {"charts", charts}}).html + "\n";
}

}  // namespace dms
