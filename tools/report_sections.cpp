#include "tools/report_sections.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "tools/number_text.h"
#include "tools/report_chart.h"
#include "tools/report_commands.h"
#include "tools/report_head_map.h"
#include "tools/report_wording.h"

namespace dms {
namespace {

constexpr int kWideWidth = 900, kNarrowWidth = 350;  // CSS pixels, as style.css shows them
constexpr size_t kMaxCurvePoints = 500;

constexpr const char* kOwnName = "this model";
constexpr const char* kStreamingName = "sinks + window";
constexpr const char* kSlidingName = "sliding window";

Markup& operator+=(Markup& all, const Markup& next) {
  all.html += next.html + "\n";
  return all;
}

Markup missing(const ReportPage& page, const std::string& reason, const std::string& command) {
  return page.blocks.fill("missing", {{"reason", reason}, {"command", command}});
}

// In place of a part that an evaluation feeds: there is none, or `what` is missing from it.
Markup missing_from_eval(const ReportPage& page, const std::string& what) {
  return missing(page,
                 page.in.has_eval ? page.in.eval_path + " does not hold " + what + ". A new evaluation writes it:"
                                  : "Not measured yet. This fills the gap:",
                 eval_command(page.in) + "\n" + report_command(page.in));
}

Markup tile(const ReportPage& page, const std::string& label, const std::string& value, const std::string& unit,
            const std::string& note) {
  return page.blocks.fill("tile", {{"label", label}, {"value", value}, {"unit", unit}, {"note", note}});
}

Markup comparison_tile(const ReportPage& page, const std::string& label, const BaselineResult& baseline) {
  const std::string closer = closeness(page.in.eval.kl_mean_second_half, baseline.kl_mean_second_half);
  if (closer.empty()) return {};
  const size_t space = closer.starts_with("as") ? closer.size() : closer.find(' ');
  return tile(page, label, closer.substr(0, space), closer.substr(std::min(closer.size(), space + 1)),
              "second half, same number of keys");
}

Markup eval_tiles(const ReportPage& page) {
  const EvalResult& eval = page.in.eval;
  Markup all;
  std::string note = "dense bytes / allocated bytes";
  if (std::isfinite(eval.eviction_rate)) note = percent_text(eval.eviction_rate) + " of older keys evicted";
  all += tile(page, "KV memory", significant_text(eval.kv_memory_ratio) + "×",
              eval.kv_memory_ratio >= 1 ? "smaller" : "", note);
  note = "per token";
  if (std::isfinite(eval.noise_floor_kl)) note += "; noise floor " + significant_text(eval.noise_floor_kl, 2);
  all += tile(page, "KL from the original", significant_text(eval.kl_mean), "nats", note);
  all += comparison_tile(page, "Against sinks + window", eval.streaming_llm);
  all += comparison_tile(page, "Against a sliding window", eval.sliding_window);
  if (std::isfinite(eval.ppl_student) && std::isfinite(eval.ppl_teacher)) {
    const double change = eval.ppl_student / eval.ppl_teacher - 1;
    all += tile(page, "Perplexity", significant_text(eval.ppl_student), "",
                "original " + significant_text(eval.ppl_teacher) + " (" + (change >= 0 ? "+" : "") +
                    percent_text(change) + ")");
  }
  if (std::isfinite(eval.top1_agreement)) {
    all += tile(page, "Same next token", percent_text(eval.top1_agreement), "", "most likely token unchanged");
  }
  if (std::isfinite(eval.kv_read_ratio)) {
    all += tile(page, "KV reads", significant_text(eval.kv_read_ratio) + "×", eval.kv_read_ratio >= 1 ? "fewer" : "",
                "keys read by attention, all tokens");
  }
  return all;
}

Markup training_tile(const ReportPage& page) {
  double seconds = 0;
  int64_t peak_bytes = 0;
  for (const StepMetrics& m : page.in.metrics) {
    if (std::isfinite(m.seconds)) seconds += m.seconds;
    peak_bytes = std::max(peak_bytes, m.peak_memory_bytes);
  }
  const int64_t steps = std::ssize(page.in.metrics);
  return tile(page, "Distillation", duration_text(seconds), "",
              count_text(steps) + (steps == 1 ? " step" : " steps") + ", peak memory " +
                  bytes_text(static_cast<double>(peak_bytes)));
}

Markup figure(const ReportPage& page, const LineChart& chart, const std::string& title, const std::string& caption,
              const std::vector<ChartSize>& sizes) {
  Markup legend, svg;
  for (const ChartSeries& series : chart.series) {
    legend += page.blocks.fill("legend-item", {{"series", series.style}, {"name", series.name}});
  }
  for (const ChartSize& size : sizes) svg += draw_line_chart(chart, size);
  return page.blocks.fill("chart", {{"title", title}, {"caption", caption}, {"legend", legend}, {"svg", svg}});
}

std::vector<ChartSize> full_width() { return {{kWideWidth, 300, "for-wide"}, {kNarrowWidth, 270, "for-narrow"}}; }

ChartSeries position_series(const char* name, const char* style, const std::vector<PositionKl>& buckets) {
  ChartSeries series{name, style, {}};
  for (const PositionKl& bucket : buckets) {
    series.points.emplace_back(static_cast<double>(bucket.from + bucket.to) / 2, bucket.kl_mean);
  }
  return series;
}

Markup position_chart(const ReportPage& page) {
  const EvalResult& eval = page.in.eval;
  LineChart chart;
  chart.x_label = "position in the sequence";
  chart.y_label = "KL, nats per token";
  chart.series = {position_series(kOwnName, "dms", eval.kl_by_position),
                  position_series(kStreamingName, "streaming", eval.streaming_llm.kl_by_position),
                  position_series(kSlidingName, "sliding", eval.sliding_window.kl_by_position)};
  std::erase_if(chart.series, [](const ChartSeries& series) { return series.points.empty(); });
  chart.y_scale = fitting_scale(chart.series);
  if (std::isfinite(eval.sequence_length)) {
    chart.band_from = eval.sequence_length / 2;
    chart.band_to = eval.sequence_length;
    chart.band_label = "second half";
  }
  if (std::isfinite(eval.window) && eval.window > 0 && eval.window < chart.band_to / 2) {
    chart.marks = {{eval.window, "window"}};
  }
  chart.description =
      "KL divergence from the uncompressed model by position in the sequence, for this model and the "
      "baselines; the numbers follow in a table";
  return figure(page, chart, "KL by position.",
                chart.y_scale == LineChart::Scale::logarithmic
                    ? "Logarithmic axis: each step up is several times farther from the original; values below the "
                      "axis are drawn on it."
                    : "",
                full_width());
}

Markup position_table(const ReportPage& page) {
  const EvalResult& eval = page.in.eval;
  const auto at = [](const std::vector<PositionKl>& buckets, size_t i) {
    return i < buckets.size() ? significant_text(buckets[i].kl_mean) : "–";
  };
  Markup rows;
  for (size_t i = 0; i < eval.kl_by_position.size(); ++i) {
    const PositionKl& bucket = eval.kl_by_position[i];
    rows +=
        page.blocks.fill("position-row", {{"positions", count_text(bucket.from) + " to " + count_text(bucket.to - 1)},
                                          {"dms", significant_text(bucket.kl_mean)},
                                          {"streaming", at(eval.streaming_llm.kl_by_position, i)},
                                          {"sliding", at(eval.sliding_window.kl_by_position, i)}});
  }
  return page.blocks.fill("positions", {{"rows", rows}});
}

ChartSeries last_use_series(const char* name, const char* style, const std::vector<LastUseKl>& buckets) {
  ChartSeries series{name, style, {}};
  for (const LastUseKl& bucket : buckets) {
    if (bucket.from > 0) series.points.emplace_back(static_cast<double>(bucket.from), bucket.kl_mean);
  }
  return series;
}

Markup last_use_chart(const ReportPage& page) {
  const EvalResult& eval = page.in.eval;
  LineChart chart;
  chart.x_label = "tokens since it last stood, at least";
  chart.y_label = "KL, nats per token";
  chart.x_log2 = chart.dots = true;
  chart.series = {last_use_series(kOwnName, "dms", eval.kl_by_last_use),
                  last_use_series(kStreamingName, "streaming", eval.streaming_llm.kl_by_last_use),
                  last_use_series(kSlidingName, "sliding", eval.sliding_window.kl_by_last_use)};
  std::erase_if(chart.series, [](const ChartSeries& series) { return series.points.empty(); });
  if (chart.series.empty()) return {};
  chart.y_scale = fitting_scale(chart.series);
  chart.description =
      "KL divergence by how long ago the text last used the token that comes next; the numbers follow in a table";
  Markup all = figure(page, chart, "KL by distance to the last use.",
                      "How far back the token that comes next stood last: what a method forgot shows on the right.",
                      full_width());
  const auto at = [](const std::vector<LastUseKl>& buckets, size_t i) {
    return i < buckets.size() ? significant_text(buckets[i].kl_mean) : "–";
  };
  Markup rows;
  for (size_t i = 0; i < eval.kl_by_last_use.size(); ++i) {
    const LastUseKl& bucket = eval.kl_by_last_use[i];
    rows += page.blocks.fill(
        "last-use-row",
        {{"since", bucket.from == 0 ? "new to the text" : count_text(bucket.from) + " to " + count_text(bucket.to - 1)},
         {"tokens", count_text(bucket.tokens)},
         {"dms", significant_text(bucket.kl_mean)},
         {"streaming", at(eval.streaming_llm.kl_by_last_use, i)},
         {"sliding", at(eval.sliding_window.kl_by_last_use, i)}});
  }
  all += page.blocks.fill("last-use", {{"rows", rows}});
  return all;
}

Markup methods_table(const ReportPage& page) {
  const EvalResult& eval = page.in.eval;
  const auto row = [&](const char* style, const char* name, double kl, double second_half, double ratio) {
    return page.blocks.fill("method-row", {{"class", style},
                                           {"name", name},
                                           {"kl", significant_text(kl)},
                                           {"second_half", significant_text(second_half)},
                                           {"ratio", significant_text(ratio) + "×"}});
  };
  Markup rows;
  rows += row("own", kOwnName, eval.kl_mean, eval.kl_mean_second_half, eval.kv_memory_ratio);
  for (const auto& [name, baseline] :
       {std::pair{kStreamingName, &eval.streaming_llm}, std::pair{kSlidingName, &eval.sliding_window}}) {
    if (std::isfinite(baseline->kl_mean)) {
      rows += row("", name, baseline->kl_mean, baseline->kl_mean_second_half, baseline->kv_memory_ratio);
    }
  }
  return page.blocks.fill("methods",
                          {{"caption", "Nats per token; every method holds the same number of keys."}, {"rows", rows}});
}

Markup scale(const ReportPage& page, const std::string& title) {
  Markup steps;
  for (int level = 0; level < kNumShareLevels; ++level) {
    steps += page.blocks.fill("scale-step", {{"level", std::to_string(level)}, {"label", share_level_label(level)}});
  }
  return page.blocks.fill("scale", {{"title", title}, {"steps", steps}});
}

ChartSeries curve(const ReportPage& page, const char* name, const char* style,
                  const std::function<double(const StepMetrics&)>& value) {
  ChartSeries series{name, style, {}};
  for (const StepMetrics& m : page.in.metrics) series.points.emplace_back(m.step, value(m));
  series.points = thinned(series.points, kMaxCurvePoints);
  return series;
}

// Whether a threshold found on one text gives other texts the ratio too.
Markup drift_table(const ReportPage& page) {
  const EvalResult& eval = page.in.eval;
  Markup rows;
  const auto add = [&](const char* style, const std::string& name, const EvalResult& set) {
    rows +=
        page.blocks.fill("drift-row", {{"class", style},
                                       {"name", name},
                                       {"target", significant_text(set.target_ratio) + "×"},
                                       {"reached", significant_text(set.kv_live_ratio) + "×"},
                                       {"drift", (set.ratio_drift >= 0 ? "+" : "") + percent_text(set.ratio_drift)}});
  };
  for (const auto& [name, set] : eval.sets) add("", name, set);
  add("own total", eval.sets.size() > 1 ? "all together" : "held-out text", eval);
  return page.blocks.fill(
      "drift", {{"caption", "The threshold was moved for this ratio of keys, on other text."}, {"rows", rows}});
}

Markup set_row(const ReportPage& page, const std::string& style, const std::string& name, const EvalResult& set) {
  return page.blocks.fill("set-row", {{"class", style},
                                      {"name", name},
                                      {"ratio", significant_text(set.kv_memory_ratio) + "×"},
                                      {"kl", significant_text(set.kl_mean)},
                                      {"second_half", significant_text(set.kl_mean_second_half)},
                                      {"streaming", significant_text(set.streaming_llm.kl_mean_second_half)},
                                      {"sliding", significant_text(set.sliding_window.kl_mean_second_half)},
                                      {"ppl_teacher", significant_text(set.ppl_teacher)},
                                      {"ppl_student", significant_text(set.ppl_student)}});
}

}  // namespace

Markup tiles_section(const ReportPage& page) {
  Markup all;
  if (page.in.has_eval) all += eval_tiles(page);
  if (!page.in.metrics.empty()) all += training_tile(page);
  return all;
}

Markup quality_section(const ReportPage& page) {
  if (!page.in.has_eval) return missing_from_eval(page, "");
  Markup all;
  if (page.in.eval.kl_by_position.empty()) {
    all += missing_from_eval(page, "KL by position (kl_mean_by_position)");
  } else {
    all += position_chart(page);
    all += position_table(page);
  }
  if (!page.in.eval.kl_by_last_use.empty()) all += last_use_chart(page);
  all += methods_table(page);
  return all;
}

Markup memory_section(const ReportPage& page) {
  const std::vector<MemoryAtLength>& points = page.in.eval.memory_by_length;
  if (points.empty()) return missing_from_eval(page, "memory by length (memory_by_length)");
  ChartSeries dense{"original, all keys", "sliding", {}}, compact{kOwnName, "dms", {}};
  for (const MemoryAtLength& point : points) {
    dense.points.emplace_back(point.tokens, point.dense_bytes);
    compact.points.emplace_back(point.tokens, point.allocated_bytes);
  }
  LineChart chart;
  chart.x_label = "tokens";
  chart.y_label = "KV cache of one sequence";
  chart.y_numbers = AxisNumbers::bytes;
  chart.series = {compact, dense};
  const MemoryAtLength& last = points.back();
  const std::string ends = "At " + count_text(last.tokens) + " tokens: " + bytes_text(last.allocated_bytes) +
                           " instead of " + bytes_text(last.dense_bytes) + ", a ratio of " +
                           significant_text(last.dense_bytes / last.allocated_bytes, 2) + ".";
  chart.description = "KV cache bytes against sequence length, original and this model. " + ends;
  return figure(page, chart, "Cache size by length.", ends, full_width());
}

Markup heads_section(const ReportPage& page) {
  const std::vector<std::vector<double>>& keep_rate_LG = page.in.eval.keep_rate_LG;
  if (keep_rate_LG.empty() || keep_rate_LG[0].empty()) {
    return missing_from_eval(page, "keep rates (per_layer_head_keep_rate)");
  }
  Markup svg;
  svg += draw_head_map(keep_rate_LG, LayerDirection::right, kWideWidth, "for-wide");
  svg += draw_head_map(keep_rate_LG, LayerDirection::down, kNarrowWidth, "for-narrow");
  return page.blocks.fill(
      "heat-map",
      {{"caption", head_map_note(keep_rate_LG)}, {"svg", svg}, {"legend", scale(page, "Share of keys kept, %")}});
}

Markup sample_section(const ReportPage& page) {
  const EvalResult& eval = page.in.eval;
  if (eval.sample.empty()) return missing_from_eval(page, "a sample text (sample)");
  const std::string of_all = " of " + count_text(eval.sample_heads_total) + " heads";
  Markup tokens;
  for (const SampleToken& token : eval.sample) {
    const double share = static_cast<double>(token.kept_heads) / static_cast<double>(eval.sample_heads_total);
    tokens.html += page.blocks
                       .fill("token", {{"level", std::to_string(share_level(share))},
                                       {"tip", "kept by " + count_text(token.kept_heads) + of_all},
                                       {"text", token.text}})
                       .html;
  }
  return page.blocks.fill("sample", {{"tokens", tokens}, {"legend", scale(page, "Share of heads that keep it, %")}});
}

double largest(const std::vector<double>& of_ranks) {
  return of_ranks.empty() ? kUnknown : *std::max_element(of_ranks.begin(), of_ranks.end());
}

// Where the steps' time went, by the rank that spent most on each.
Markup ranks_figure(const ReportPage& page, const std::string& over_steps, const std::vector<ChartSize>& size) {
  LineChart times;
  times.x_label = "step";
  times.y_label = "seconds";
  times.series = {
      curve(page, "computing", "dms", [](const StepMetrics& m) { return largest(m.rank_compute_seconds); }),
      curve(page, "waiting for ranks", "streaming",
            [](const StepMetrics& m) { return largest(m.rank_communication_seconds); }),
      curve(page, "reading data", "sliding", [](const StepMetrics& m) { return largest(m.rank_data_seconds); })};
  times.description = "Seconds a step spent computing, waiting for other ranks and reading data" + over_steps;

  std::vector<int64_t> steps_as_straggler(page.in.metrics.back().rank_seconds.size(), 0);
  for (const StepMetrics& step : page.in.metrics) {
    const int64_t slow = straggler_of(step);
    if (slow >= 0 && slow < std::ssize(steps_as_straggler)) ++steps_as_straggler[static_cast<size_t>(slow)];
  }
  const auto most = std::max_element(steps_as_straggler.begin(), steps_as_straggler.end());
  std::string note =
      "Of the " + count_text(std::ssize(steps_as_straggler)) + " ranks, the one that spent most on each.";
  if (*most > 0) {
    note += " Rank " + std::to_string(most - steps_as_straggler.begin()) + " computed over " +
            percent_text(kStragglerShare) + " longer than the others in " + count_text(*most) + " steps.";
  }
  return figure(page, times, "Where the time went.", note, size);
}

Markup training_section(const ReportPage& page) {
  if (page.in.metrics.empty()) {
    return missing(page, page.in.run_dir + "/metrics.jsonl holds no step. Training writes it:", train_command(page.in));
  }
  const std::string over_steps = " over " + count_text(std::ssize(page.in.metrics)) + " steps";
  const std::vector<ChartSize> size = {{kNarrowWidth, 230, ""}};
  Markup charts;
  LineChart loss;
  loss.x_label = "step";
  loss.y_label = "nats per token";
  loss.series = {curve(page, "KL", "dms", [](const StepMetrics& m) { return m.kl; }),
                 curve(page, "loss", "streaming", [](const StepMetrics& m) { return m.loss; })};
  loss.y_scale = fitting_scale(loss.series);
  loss.description = "Loss and KL divergence" + over_steps;
  charts += figure(page, loss, "Loss and KL.", "Loss adds the penalty for evicting too little.", size);

  LineChart eviction;
  eviction.x_label = "step";
  eviction.y_label = "share of keys evicted";
  eviction.y_numbers = AxisNumbers::percent;
  eviction.y_scale = LineChart::Scale::fitted;
  eviction.series = {curve(page, "evicted", "dms", [](const StepMetrics& m) { return m.eviction_rate; }),
                     curve(page, "target", "streaming", [](const StepMetrics& m) { return 1 - 1 / m.target_cr; }),
                     curve(page, "soft mean", "sliding", [](const StepMetrics& m) { return m.alpha_mean; })};
  eviction.description = "Eviction rate and its target" + over_steps;
  charts +=
      figure(page, eviction, "Eviction.", "Hard decisions, their target, and the soft mean that is trained.", size);

  LineChart gradient;
  gradient.x_label = "step";
  gradient.y_label = "norm";
  gradient.series = {curve(page, "gradient norm", "dms", [](const StepMetrics& m) { return m.grad_norm; })};
  gradient.description = "Gradient norm before clipping" + over_steps;
  charts += figure(page, gradient, "Gradient norm.", "Before clipping.", size);
  if (page.in.metrics.back().rank_seconds.size() > 1) charts += ranks_figure(page, over_steps, size);
  return page.blocks.fill("charts", {{"charts", charts}});
}

Markup sets_section(const ReportPage& page) {
  const EvalResult& eval = page.in.eval;
  if (!page.in.has_eval) return missing_from_eval(page, "");
  Markup rows;
  for (const auto& [name, set] : eval.sets) rows += set_row(page, "", name, set);
  rows += set_row(page, "own total", eval.sets.size() > 1 ? "all together" : "held-out text", eval);
  Markup all =
      page.blocks.fill("sets", {{"caption", "Held-out documents that training has not seen."}, {"rows", rows}});
  if (std::isfinite(eval.target_ratio)) all += drift_table(page);
  return all;
}

}  // namespace dms
