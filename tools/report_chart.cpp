#include "tools/report_chart.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <limits>

#include "tools/number_text.h"

namespace dms {
namespace {

using Points = std::vector<std::pair<double, double>>;

// The middle value of the finite, positive ys, or 0 when there is none.
double median_of_positive(const Points& points) {
  std::vector<double> values;
  for (const auto& [x, y] : points) {
    if (std::isfinite(y) && y > 0) values.push_back(y);
  }
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
  return values[values.size() / 2];
}

// The smallest and largest finite y; (0, 0) when there is none.
std::pair<double, double> y_range(const std::vector<ChartSeries>& all) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const ChartSeries& series : all) {
    for (const auto& [x, y] : series.points) {
      if (!std::isfinite(y)) continue;
      low = std::min(low, y);
      high = std::max(high, y);
    }
  }
  return low <= high ? std::pair(low, high) : std::pair(0.0, 0.0);
}

// The smallest of 1, 2, 5 times a power of ten that is >= value.
double round_up_125(double value) {
  const double power = std::pow(10, std::floor(std::log10(value) + 1e-9));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= value * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

std::string tick_text(double value, double step) {
  const int num_decimals = std::max(0, static_cast<int>(-std::floor(std::log10(step) + 1e-9)));
  char buffer[400];
  std::snprintf(buffer, sizeof buffer, "%.*f", num_decimals, value);
  return buffer;
}

struct Tick {
  double value;
  std::string text;
};

struct Axis {
  double low = 0, high = 1;
  bool log = false;
  std::vector<Tick> ticks;

  double fraction(double value) const {
    if (!log) return (value - low) / (high - low);
    return std::log(std::max(value, low) / low) / std::log(high / low);
  }
};

Axis linear_axis(double low, double high, AxisNumbers numbers, int num_ticks) {
  double unit = 1;
  std::string suffix;
  if (numbers == AxisNumbers::percent) {
    unit = 0.01;
    suffix = "%";
  } else if (numbers == AxisNumbers::bytes) {
    suffix = " B";
    for (const char* name : {" KiB", " MiB", " GiB", " TiB", " PiB"}) {
      if (high < 1024 * unit) break;
      unit *= 1024;
      suffix = name;
    }
  }
  if (!(high > low)) high = low + unit;
  const double step = round_up_125((high - low) / unit / num_ticks);
  const int64_t first = std::llround(std::floor(low / unit / step + 1e-9));
  const int64_t last = std::llround(std::ceil(high / unit / step - 1e-9));
  Axis axis;
  for (int64_t i = first; i <= last; ++i) {
    const double value = static_cast<double>(i) * step;
    axis.ticks.push_back({value * unit, tick_text(value, step) + suffix});
  }
  axis.low = axis.ticks.front().value;
  axis.high = axis.ticks.back().value;
  return axis;
}

// From the decade well below the lowest typical value up to the largest one.
Axis log_axis(const std::vector<ChartSeries>& all) {
  double lowest = std::numeric_limits<double>::infinity();
  for (const ChartSeries& series : all) {
    const double median = median_of_positive(series.points);
    if (median > 0) lowest = std::min(lowest, median);
  }
  if (!std::isfinite(lowest)) return linear_axis(0, 0, AxisNumbers::plain, 4);
  Axis axis;
  axis.log = true;
  axis.low = std::pow(10, std::floor(std::log10(lowest / 3)));
  axis.high = round_up_125(y_range(all).second);
  const bool decades_only = axis.high / axis.low > 2000;
  for (double decade = axis.low; decade <= axis.high * 1.001; decade *= 10) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double value = factor * decade;
      if (value <= axis.high * 1.001 && (factor == 1.0 || !decades_only)) {
        axis.ticks.push_back({value, tick_text(value, decade)});
      }
    }
  }
  return axis;
}

Axis y_axis(const LineChart& chart, int num_ticks) {
  if (chart.y_scale == LineChart::Scale::logarithmic) return log_axis(chart.series);
  const auto [low, high] = y_range(chart.series);
  const double from = chart.y_scale == LineChart::Scale::from_zero ? std::min(0.0, low) : low;
  return linear_axis(from, high, chart.y_numbers, num_ticks);
}

Axis x_axis(const std::vector<ChartSeries>& all, const LineChart& chart, int num_ticks) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const ChartSeries& series : all) {
    for (const auto& [x, y] : series.points) {
      low = std::min(low, x);
      high = std::max(high, x);
    }
  }
  if (chart.band_to > chart.band_from) high = std::max(high, chart.band_to);
  if (!(high > low)) {
    low = std::isfinite(low) ? low : 0;
    high = low + 1;
  }
  if (chart.x_log2) {
    Axis axis;
    axis.log = true;
    axis.low = low;
    axis.high = high;
    for (double value = std::exp2(std::ceil(std::log2(low))); value <= high; value *= 2) {
      axis.ticks.push_back({value, count_text(std::llround(value))});
    }
    return axis;
  }
  if (low > 0 && low < high / 4) low = 0;
  // Lengths of text are powers of two: then quarters are rounder than tens.
  const double log2_high = std::log2(high);
  const bool quarters = low == 0 && high >= 256 && log2_high == std::floor(log2_high);
  const double step = quarters ? high / 4 : std::max(1.0, round_up_125((high - low) / num_ticks));
  Axis axis;
  axis.low = low;
  axis.high = high;
  for (double value = std::ceil(low / step) * step; value <= high + 1e-9; value += step) {
    axis.ticks.push_back({value, count_text(std::llround(value))});
  }
  return axis;
}

std::string coordinate(double value) {
  char buffer[400];
  std::snprintf(buffer, sizeof buffer, "%.1f", value);
  std::string text = buffer;
  if (text.ends_with(".0")) text.resize(text.size() - 2);
  return text == "-0" ? "0" : text;
}

std::string text_element(double x, double y, const char* anchor, const std::string& text) {
  return "<text x=\"" + coordinate(x) + "\" y=\"" + coordinate(y) + "\" text-anchor=\"" + anchor + "\">" +
         escape_html(text) + "</text>\n";
}

std::string line_element(const char* style, double x1, double y1, double x2, double y2) {
  return std::string("<path class=\"") + style + "\" d=\"M" + coordinate(x1) + " " + coordinate(y1) + "L" +
         coordinate(x2) + " " + coordinate(y2) + "\"/>\n";
}

std::string rectangle(const std::string& style, double x, double y, double width, double height,
                      const std::string& tip = "") {
  const std::string open = "<rect class=\"" + style + "\" x=\"" + coordinate(x) + "\" y=\"" + coordinate(y) +
                           "\" width=\"" + coordinate(std::max(0.0, width)) + "\" height=\"" + coordinate(height) +
                           "\"";
  return tip.empty() ? open + "/>\n" : open + "><title>" + escape_html(tip) + "</title></rect>\n";
}

std::string value_text(double value, AxisNumbers numbers) {
  switch (numbers) {
    case AxisNumbers::percent:
      return percent_text(value);
    case AxisNumbers::bytes:
      return bytes_text(value);
    case AxisNumbers::plain:
      break;
  }
  return significant_text(value);
}

// Where the plot lies inside the drawing.
struct Frame {
  double left, right, top, bottom;
  Axis x, y;

  double px(double value) const { return left + (right - left) * x.fraction(value); }
  double py(double value) const { return bottom - (bottom - top) * y.fraction(value); }
};

std::string draw_axes(const LineChart& chart, const Frame& frame) {
  std::string svg;
  if (chart.band_to > chart.band_from) {
    const double from = frame.px(chart.band_from);
    svg += rectangle("band", from, frame.top, frame.px(chart.band_to) - from, frame.bottom - frame.top);
  }
  for (const Tick& tick : frame.y.ticks) {
    const double y = frame.py(tick.value);
    svg += line_element("grid", frame.left, y, frame.right, y);
    svg += text_element(frame.left - 7, y + 4, "end", tick.text);
  }
  svg += line_element("axis", frame.left, frame.bottom, frame.right, frame.bottom);
  for (const Tick& tick : frame.x.ticks) {
    const double x = frame.px(tick.value);
    svg += line_element("axis", x, frame.bottom, x, frame.bottom + 4);
    svg += text_element(x, frame.bottom + 17, "middle", tick.text);
  }
  for (const auto& [value, label] : chart.marks) {
    svg += line_element("mark", frame.px(value), frame.top, frame.px(value), frame.bottom);
    svg += text_element(frame.px(value) + 5, frame.top + 15, "start", label);
  }
  if (chart.band_to > chart.band_from) {
    svg += text_element(frame.px(chart.band_to) - 6, frame.bottom - 8, "end", chart.band_label);
  }
  svg += text_element(0, 11, "start", chart.y_label);
  svg += text_element(frame.right, frame.bottom + 32, "end", chart.x_label);
  return svg;
}

std::string draw_series(const ChartSeries& series, const Frame& frame) {
  std::string path;
  bool pen_down = false;
  for (const auto& [x, y] : series.points) {
    if (std::isfinite(y)) path += (pen_down ? "L" : "M") + coordinate(frame.px(x)) + " " + coordinate(frame.py(y));
    pen_down = std::isfinite(y);
  }
  if (path.empty()) return "";
  // A path of one point draws nothing, except with round caps and a length of zero.
  if (path.find('L') == std::string::npos) path += "h0";
  return "<path class=\"line " + series.style + "\" d=\"" + path + "\"/>\n";
}

std::string draw_dots(const ChartSeries& series, const Frame& frame) {
  std::string svg;
  for (const auto& [x, y] : series.points) {
    if (!std::isfinite(y)) continue;
    svg += "<circle class=\"dot " + series.style + "\" cx=\"" + coordinate(frame.px(x)) + "\" cy=\"" +
           coordinate(frame.py(y)) + "\" r=\"4\"/>\n";
  }
  return svg;
}

// Invisible bands, one a point, that carry the values as tooltips.
std::string draw_tips(const LineChart& chart, const Frame& frame, size_t max_tips) {
  const auto longest = std::max_element(chart.series.begin(), chart.series.end(),
                                        [](const auto& a, const auto& b) { return a.points.size() < b.points.size(); });
  if (longest == chart.series.end()) return "";
  const Points& points = longest->points;
  const size_t stride = (points.size() + max_tips - 1) / max_tips;
  std::string svg;
  for (size_t i = 0; i < points.size(); i += stride) {
    const double x = points[i].first;
    const double from = i == 0 ? frame.left : (frame.px(points[i - stride].first) + frame.px(x)) / 2;
    const double to =
        i + stride >= points.size() ? frame.right : (frame.px(points[i + stride].first) + frame.px(x)) / 2;
    std::string tip = chart.x_label + " " + count_text(std::llround(x));
    for (const ChartSeries& series : chart.series) {
      const auto at = std::lower_bound(series.points.begin(), series.points.end(), x,
                                       [](const auto& point, double value) { return point.first < value; });
      if (at != series.points.end() && at->first == x) {
        tip += "\n" + series.name + ": " + value_text(at->second, chart.y_numbers);
      }
    }
    svg += rectangle("hit", from, frame.top, to - from, frame.bottom - frame.top, tip);
  }
  return svg;
}

}  // namespace

LineChart::Scale fitting_scale(const std::vector<ChartSeries>& all) {
  double low = std::numeric_limits<double>::infinity(), high = 0;
  for (const ChartSeries& series : all) {
    const double median = median_of_positive(series.points);
    if (median == 0) continue;
    low = std::min(low, median);
    high = std::max(high, median);
  }
  return high > 5 * low ? LineChart::Scale::logarithmic : LineChart::Scale::from_zero;
}

Points thinned(const Points& points, size_t max_points) {
  if (points.size() <= max_points) return points;
  const size_t group = (points.size() + max_points - 1) / max_points;
  Points means;
  for (size_t begin = 0; begin < points.size(); begin += group) {
    const size_t end = std::min(points.size(), begin + group);
    double x = 0, y = 0;
    for (size_t i = begin; i < end; ++i) {
      x += points[i].first;
      y += points[i].second;
    }
    means.emplace_back(x / static_cast<double>(end - begin), y / static_cast<double>(end - begin));
  }
  return means;
}

Markup draw_line_chart(const LineChart& chart, const ChartSize& size) {
  const int num_y_ticks = size.height < 240 ? 4 : 5;
  Frame frame{};
  frame.y = y_axis(chart, num_y_ticks);
  frame.x = x_axis(chart.series, chart, size.width / 90);
  size_t longest_label = 0;
  for (const Tick& tick : frame.y.ticks) longest_label = std::max(longest_label, tick.text.size());
  frame.left = 11 + 6.4 * static_cast<double>(longest_label);
  frame.right = size.width - 14;
  frame.top = 22;
  frame.bottom = size.height - 38;

  std::string svg = "<svg" + (size.css_class.empty() ? "" : " class=\"" + size.css_class + "\"") + " viewBox=\"0 0 " +
                    std::to_string(size.width) + " " + std::to_string(size.height) + "\" role=\"img\" aria-label=\"" +
                    escape_html(chart.description) + "\">\n";
  svg += draw_axes(chart, frame);
  // The first series is the one the chart is about: drawn last, on top.
  for (auto series = chart.series.rbegin(); series != chart.series.rend(); ++series) {
    svg += draw_series(*series, frame);
    if (chart.dots) svg += draw_dots(*series, frame);
  }
  svg += draw_tips(chart, frame, static_cast<size_t>(size.width) / 7);
  return {svg + "</svg>"};
}

}  // namespace dms
