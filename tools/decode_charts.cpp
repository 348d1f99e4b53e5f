#include "tools/decode_charts.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "tools/number_text.h"
#include "tools/report_assets.h"
#include "tools/report_bars.h"
#include "tools/report_chart.h"

namespace dms {

namespace {

using Value = std::function<double(const DecodePoint&)>;

constexpr int kChartWidth = 520;

struct Engine {
  const char *name, *style;
};
constexpr Engine kEngines[] = {
    {"this evictor", "dms"}, {"eviction off", "streaming"}, {"transformers, DynamicCache", "sliding"}};

size_t engine_of(const DecodePoint& point) { return !point.is_dms ? 2 : point.evict ? 0 : 1; }

std::vector<ChartSeries> series_of(const std::vector<DecodePoint>& points, const Value& x, const Value& y) {
  std::vector<ChartSeries> all;
  for (const Engine& engine : kEngines) all.push_back({engine.name, engine.style, {}});
  for (const DecodePoint& point : points) all[engine_of(point)].points.emplace_back(x(point), y(point));
  std::erase_if(all, [](const ChartSeries& series) { return series.points.empty(); });
  for (ChartSeries& series : all) std::sort(series.points.begin(), series.points.end());
  return all;
}

Markup figure(const ReportTemplate& blocks, const LineChart& chart, const std::string& title) {
  Markup legend;
  for (const ChartSeries& series : chart.series) {
    legend.html += blocks.fill("legend-item", {{"series", series.style}, {"name", series.name}}).html;
  }
  const Markup svg = draw_line_chart(chart, {kChartWidth, 300, ""});
  return blocks.fill("chart", {{"title", title}, {"caption", ""}, {"legend", legend}, {"svg", svg}});
}

Markup pair_of_charts(const ReportTemplate& blocks, const std::vector<DecodePoint>& points, const std::string& x_label,
                      const Value& x, const std::string& where) {
  LineChart speed;
  speed.x_label = x_label;
  speed.dots = true;
  speed.y_label = "tokens per second, all sequences";
  speed.series = series_of(points, x, [](const DecodePoint& point) { return point.tokens_per_s; });
  speed.description = "Tokens per second by engine over " + x_label + "; the numbers are in the benchmark's JSON";
  LineChart memory;
  memory.x_label = x_label;
  memory.dots = true;
  memory.y_label = "keys and values, allocated";
  memory.y_numbers = AxisNumbers::bytes;
  memory.series = series_of(points, x, [](const DecodePoint& point) { return point.kv_bytes; });
  memory.description = "Bytes of keys and values by engine over " + x_label;
  const Markup charts{figure(blocks, speed, "Speed" + where + ".").html +
                      figure(blocks, memory, "Memory" + where + ".").html};
  return blocks.fill("charts", {{"charts", charts}});
}

// Engines side by side at one place, as far as they were measured there.
Markup bars(const ReportTemplate& blocks, std::vector<DecodePoint> here) {
  std::stable_sort(here.begin(), here.end(), [](const auto& a, const auto& b) { return engine_of(a) < engine_of(b); });
  const auto off = std::find_if(here.begin(), here.end(), [](const auto& point) { return engine_of(point) == 1; });
  std::vector<Bar> bars;
  for (const DecodePoint& point : here) {
    std::string label = significant_text(point.tokens_per_s) + " tokens/s, " + count_text(point.sequences) +
                        (point.sequences == 1 ? " sequence" : " sequences");
    if (off != here.end() && engine_of(point) != 1) {
      label += ", " + significant_text(point.tokens_per_s / off->tokens_per_s, 2) + "×";
    }
    bars.push_back({kEngines[engine_of(point)].name, kEngines[engine_of(point)].style, point.tokens_per_s, label});
  }
  const DecodePoint& first = here.front();
  const std::string after = " after " + count_text(first.context) + " tokens";
  const std::string title = first.kv_budget_bytes > 0
                                ? "Speed in " + bytes_text(first.kv_budget_bytes) + " of KV memory," + after + "."
                                : "Speed" + after + ".";
  return blocks.fill("bars", {{"title", title},
                              {"caption", first.kv_budget_bytes > 0 ? "As many sequences as fit, all together." : ""},
                              {"svg", draw_bars(bars, title + " The values stand beside the bars.", kChartWidth)}});
}

}  // namespace

const char* decode_engine_name(const DecodePoint& point) { return kEngines[engine_of(point)].name; }

Markup decode_charts(const ReportTemplate& blocks, const std::vector<DecodePoint>& points) {
  std::map<std::pair<int64_t, double>, std::vector<DecodePoint>> in_budget;
  std::vector<DecodePoint> batches;
  std::set<int64_t> contexts, sequences;
  for (const DecodePoint& point : points) {
    if (point.kv_budget_bytes > 0) {
      in_budget[{point.context, point.kv_budget_bytes}].push_back(point);
      continue;
    }
    batches.push_back(point);
    contexts.insert(point.context);
    sequences.insert(point.sequences);
  }
  Markup all;
  if (sequences.size() > 1) {
    for (const int64_t tokens : contexts) {
      std::vector<DecodePoint> here;
      std::copy_if(batches.begin(), batches.end(), std::back_inserter(here),
                   [&](const DecodePoint& point) { return point.context == tokens; });
      all.html +=
          pair_of_charts(
              blocks, here, "sequences", [](const DecodePoint& point) { return static_cast<double>(point.sequences); },
              " after " + count_text(tokens) + " tokens")
              .html +
          "\n";
    }
  } else if (contexts.size() > 1) {
    all.html += pair_of_charts(
                    blocks, batches, "tokens of context",
                    [](const DecodePoint& point) { return static_cast<double>(point.context); }, "")
                    .html +
                "\n";
  } else if (!batches.empty()) {
    all.html += bars(blocks, batches).html + "\n";
  }
  for (const auto& [place, here] : in_budget) all.html += bars(blocks, here).html + "\n";
  return all;
}

std::string decode_page(const std::vector<DecodePoint>& points) {
  const ReportTemplate blocks(kReportPage);
  return blocks
             .fill("decode-page",
                   {{"style", Markup{std::string(kReportStyle)}}, {"charts", decode_charts(blocks, points)}})
             .html +
         "\n";
}

}  // namespace dms
