#include "tools/report_inference.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "data/staged_file.h"
#include "recipes/strict_json.h"
#include "recipes/user_error.h"
#include "tools/number_text.h"
#include "tools/report_chart.h"
#include "trainer/task_results.h"

namespace dms {
namespace {

using Frontier = std::vector<std::pair<double, double>>;

// How an evictor is called and drawn.
struct Style {
  const char *name, *css_class;
};
Style style_of(const std::string& evictor) {
  if (evictor == "trained") return {"this model", "dms"};
  if (evictor == "none") return {"original", "sliding"};
  return {"sinks + window", "streaming"};
}

struct Cost {
  const char *label, *what;
  double TaskPoint::*value;
  bool in_bytes;
};
constexpr Cost kCosts[] = {{"tokens a problem", "tokens", &TaskPoint::tokens, false},
                           {"MiB of keys and values read a problem", "KV reads", &TaskPoint::kv_read_bytes, true},
                           {"MiB of KV cache at its peak", "peak KV memory", &TaskPoint::peak_kv_bytes, true}};

double shown(const Cost& cost, double value) { return cost.in_bytes ? value / (1 << 20) : value; }
std::string cost_text(const Cost& cost, double value) {
  return cost.in_bytes ? bytes_text(value) : significant_text(value) + " tokens";
}

std::map<std::string, Frontier> frontiers_of(const std::vector<TaskPoint>& points, const Cost& cost) {
  std::map<std::string, Frontier> frontiers;
  for (const TaskPoint& point : points) frontiers[point.evictor].emplace_back(point.*cost.value, point.accuracy);
  for (auto& [evictor, frontier] : frontiers) frontier = pareto_frontier(std::move(frontier));
  return frontiers;
}

// "At what the original's best answers cost (...): original 40%, this model 45%."
std::string at_equal_cost(const std::map<std::string, Frontier>& frontiers, const Cost& cost) {
  const auto original = frontiers.find("none");
  if (original == frontiers.end() || frontiers.size() < 2) return "";
  const double budget = original->second.back().first;
  std::string text = "At the " + std::string(cost.what) + " of the original's best (" + cost_text(cost, budget) + "):";
  std::string separator = " ";
  for (const auto& [evictor, frontier] : frontiers) {
    const double accuracy = accuracy_at(frontier, budget);
    text +=
        separator + style_of(evictor).name + " " + (std::isfinite(accuracy) ? percent_text(accuracy) : "not within it");
    separator = ", ";
  }
  return text + ".";
}

// What compares: the points of each set of questions, under a name that tells the sets of one task apart.
std::vector<std::pair<std::string, std::vector<TaskPoint>>> by_questions(const std::vector<TaskPoint>& points) {
  std::map<std::string, std::map<std::string, std::vector<TaskPoint>>> sets;
  for (const TaskPoint& point : points) sets[point.task][point.questions_sha256].push_back(point);
  std::vector<std::pair<std::string, std::vector<TaskPoint>>> named;
  for (auto& [task, of_task] : sets) {
    const auto first = std::ssize(named);
    for (auto& [sha256, of_set] : of_task) {
      const std::string which =
          " of " + significant_text(of_set[0].prompt_tokens) + " tokens (questions " + sha256.substr(0, 8) + ")";
      named.emplace_back(of_task.size() == 1 ? task : task + which, std::move(of_set));
    }
    std::stable_sort(named.begin() + first, named.end(), [](const auto& a, const auto& b) {
      return a.second[0].prompt_tokens < b.second[0].prompt_tokens;
    });
  }
  return named;
}

Markup& operator+=(Markup& all, const Markup& next) {
  all.html += next.html + "\n";
  return all;
}

Markup figure(const ReportPage& page, const LineChart& chart, const std::string& title, const std::string& caption) {
  Markup legend;
  for (const ChartSeries& series : chart.series) {
    legend += page.blocks.fill("legend-item", {{"series", series.style}, {"name", series.name}});
  }
  return page.blocks.fill(
      "chart",
      {{"title", title}, {"caption", caption}, {"legend", legend}, {"svg", draw_line_chart(chart, {350, 240, ""})}});
}

Markup missing(const ReportPage& page, const std::string& command, const std::string& then) {
  return page.blocks.fill("missing", {{"reason", "Not measured yet. This fills the gap:"},
                                      {"command", command + "\ndms report --run " + page.in.run_dir + " " + then}});
}

}  // namespace

std::vector<DecodePoint> read_decode_points(const std::string& path) {
  std::vector<DecodePoint> points;
  const nlohmann::json json = parse_strict_json(read_file(path), path);
  try {
    for (const auto& row : json.at("rows")) {
      points.push_back({row.at("engine") == "dms", row.at("evict"), row.at("context"), row.at("sequences"),
                        row.at("tokens_per_s"), row.at("kv_bytes"), row.at("kv_budget_bytes")});
    }
  } catch (const nlohmann::json::exception& error) {
    throw UserError(path, "is not what `dms bench decode --json FILE` wrote", {error.what()});
  }
  return points;
}

std::vector<TaskPoint> read_task_points(const std::string& path) {
  const TaskResults file = read_results(path);
  if (!file.conditions.has_value() || file.results.empty()) throw UserError(path, "holds no answers");
  const TaskSummary summary = summarize(file.results);
  std::vector<TaskPoint> points;
  const auto add = [&](int64_t samples, double accuracy) {
    const auto k = static_cast<double>(samples);
    points.push_back({file.conditions->task, file.conditions->questions_sha256, summary.mean_prompt_tokens,
                      file.conditions->evictor, samples, accuracy, samples == 1 ? summary.standard_error : kUnknown,
                      k * summary.mean_new_tokens,
                      k * summary.mean_keys_read * static_cast<double>(file.conditions->bytes_per_key),
                      k * summary.mean_peak_kv_bytes});
  };
  add(1, summary.pass_at_1);
  for (const auto& [k, share] : summary.maj_at_k) {
    if (k > 2) add(k, share);  // two that differ tie: no better than one
  }
  return points;
}

Frontier pareto_frontier(Frontier points) {
  std::sort(points.begin(), points.end(),
            [](const auto& a, const auto& b) { return a.first != b.first ? a.first < b.first : a.second > b.second; });
  Frontier frontier;
  for (const auto& point : points) {
    if (frontier.empty() || point.second > frontier.back().second) frontier.push_back(point);
  }
  return frontier;
}

double accuracy_at(const Frontier& frontier, double cost) {
  double accuracy = kUnknown;
  for (const auto& [at, value] : frontier) {
    if (at <= cost) accuracy = value;
  }
  return accuracy;
}

Markup throughput_section(const ReportPage& page) {
  if (page.in.decode.empty()) {
    return missing(page,
                   "dms bench decode --model " + page.in.model_path + " --adapters " + page.in.run_dir +
                       " --context 8192 --batch 16 --json decode.json",
                   "--decode decode.json");
  }
  std::vector<DecodePoint> points = page.in.decode;
  std::stable_sort(points.begin(), points.end(), [](const auto& a, const auto& b) { return a.context < b.context; });
  Markup rows;
  for (const DecodePoint& point : points) {
    const bool budgeted = point.kv_budget_bytes > 0;
    rows += page.blocks.fill("decode-row", {{"context", count_text(point.context)},
                                            {"engine", decode_engine_name(point)},
                                            {"budget", budgeted ? bytes_text(point.kv_budget_bytes) : "–"},
                                            {"sequences", count_text(point.sequences)},
                                            {"rate", significant_text(point.tokens_per_s)},
                                            {"bytes", bytes_text(point.kv_bytes)}});
  }
  Markup all = decode_charts(page.blocks, points);
  all += page.blocks.fill("decode", {{"rows", rows}});
  return all;
}

Markup tasks_section(const ReportPage& page) {
  if (page.in.tasks.empty()) {
    return missing(page,
                   "dms eval-tasks --model " + page.in.model_path + " --adapters " + page.in.run_dir +
                       " --task needles --out needles.jsonl",
                   "--tasks needles.jsonl");
  }
  Markup all;
  for (const auto& [task, points] : by_questions(page.in.tasks)) {
    Markup charts, rows;
    for (const Cost& cost : kCosts) {
      const auto frontiers = frontiers_of(points, cost);
      LineChart chart;
      chart.x_label = cost.label;
      chart.y_label = "right answers";
      chart.y_numbers = AxisNumbers::percent;
      chart.dots = true;
      for (const auto& [evictor, frontier] : frontiers) {
        ChartSeries series{style_of(evictor).name, style_of(evictor).css_class, {}};
        for (const auto& [at, accuracy] : frontier) series.points.emplace_back(shown(cost, at), accuracy);
        chart.series.push_back(std::move(series));
      }
      chart.description = "Right answers against " + std::string(cost.what) + "; the numbers follow in a table";
      charts += figure(page, chart, task + ": accuracy against " + cost.what + ".", at_equal_cost(frontiers, cost));
    }
    all += page.blocks.fill("charts", {{"charts", charts}});
    for (const TaskPoint& point : points) {
      std::string accuracy = percent_text(point.accuracy);
      if (std::isfinite(point.standard_error)) accuracy += " ± " + percent_text(point.standard_error);
      rows += page.blocks.fill("task-row", {{"engine", style_of(point.evictor).name},
                                            {"samples", count_text(point.samples)},
                                            {"accuracy", accuracy},
                                            {"tokens", significant_text(point.tokens)},
                                            {"reads", bytes_text(point.kv_read_bytes)},
                                            {"peak", bytes_text(point.peak_kv_bytes)}});
    }
    all += page.blocks.fill("tasks", {{"task", task}, {"rows", rows}});
  }
  return all;
}

}  // namespace dms
