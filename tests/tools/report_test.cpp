#include "tools/report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

#include "recipes/user_error.h"
#include "tools/report_chart.h"
#include "tools/report_commands.h"
#include "tools/report_head_map.h"
#include "tools/report_template.h"

namespace dms {
namespace {

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++count;
  return count;
}

TEST(EscapeHtml, LeavesNoMarkupAndNoForbiddenCharacter) {
  EXPECT_EQ(escape_html("<a href=\"x\" title='y'>&amp;</a>"),
            "&lt;a href=&quot;x&quot; title=&#39;y&#39;&gt;&amp;amp;&lt;/a&gt;");
  EXPECT_EQ(escape_html(std::string("\x01\x1b\x7f\r", 4)), "\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(escape_html("line\n\ttab é 中"), "line\n\ttab é 中");
}

TEST(ReportTemplate, EscapesTextAndPassesMarkup) {
  const ReportTemplate blocks("ignored\n<!-- [a] -->\n\n<p>{{x}}</p>\n{{x}}\n\n<!-- [b] -->\n<b>{{y}}</b>\n");
  EXPECT_EQ(blocks.fill("a", {{"x", "1 < 2"}}).html, "<p>1 &lt; 2</p>\n1 &lt; 2");
  EXPECT_EQ(blocks.fill("a", {{"x", blocks.fill("b", {{"y", "{{x}}"}})}}).html, "<p><b>{{x}}</b></p>\n<b>{{x}}</b>");
}

TEST(ReportTemplate, RefusesWhatDoesNotFit) {
  const ReportTemplate blocks("<!-- [a] -->\n{{x}}\n");
  EXPECT_THROW(blocks.fill("b", {}), std::logic_error);
  EXPECT_THROW(blocks.fill("a", {}), std::logic_error);
  EXPECT_THROW(blocks.fill("a", {{"x", "1"}, {"y", "2"}}), std::logic_error);
  EXPECT_THROW(ReportTemplate("<!-- [a] -->\n<!-- [a] -->\n"), std::logic_error);
}

// From the first `before` to the end of its element.
std::string element_from(const std::string& svg, const std::string& before) {
  const size_t begin = svg.find(before);
  return begin == std::string::npos ? "" : svg.substr(begin, svg.find("/>", begin) - begin);
}

const std::string kLine = "class=\"line dms\" d=\"";

LineChart one_series(std::vector<std::pair<double, double>> points) {
  LineChart chart;
  chart.series = {{"s", "dms", std::move(points)}};
  return chart;
}

TEST(LineChart, PutsPointsWhereTheAxesSay) {
  // y from 0 to 4, x from 0 to 10: the line runs from the bottom left corner to the top right one.
  LineChart chart = one_series({{0, 0}, {10, 4}});
  const std::string svg = draw_line_chart(chart, {400, 200, ""}).html;
  EXPECT_NE(svg.find("<path class=\"line dms\" d=\"M17.4 162L386 22\"/>"), std::string::npos) << svg;
}

TEST(LineChart, AValueThatIsNotFiniteBreaksTheLine) {
  const std::string svg =
      draw_line_chart(one_series({{0, 1}, {1, 2}, {2, std::nan("")}, {3, 2}, {4, 1}}), {400, 200, ""}).html;
  const std::string path = element_from(svg, kLine);
  EXPECT_EQ(count_of(path, "M"), 2u) << path;
  EXPECT_EQ(count_of(svg, "nan"), 0u);
}

TEST(LineChart, ALogarithmicAxisDrawsZeroOnItsFloor) {
  LineChart chart = one_series({{0, 0}, {10, 1}, {20, 1}});
  chart.y_scale = LineChart::Scale::logarithmic;
  const std::string svg = draw_line_chart(chart, {400, 200, ""}).html;
  EXPECT_NE(element_from(svg, kLine).find(" 162L"), std::string::npos) << svg;  // 162 is the bottom of the plot
  EXPECT_EQ(count_of(svg, "inf"), 0u);
}

TEST(LineChart, SurvivesDegenerateData) {
  for (const auto scale : {LineChart::Scale::from_zero, LineChart::Scale::fitted, LineChart::Scale::logarithmic}) {
    for (const auto& points :
         std::vector<std::vector<std::pair<double, double>>>{{},
                                                             {{5, 1}},
                                                             {{0, 0}, {1, 0}},
                                                             {{0, std::nan("")}, {1, std::nan("")}},
                                                             {{1, -2}, {2, -1}},
                                                             {{0, 1e300}, {1, 1e-300}}}) {
      LineChart chart = one_series(points);
      chart.y_scale = scale;
      const std::string svg = draw_line_chart(chart, {400, 200, "for-wide"}).html;
      EXPECT_TRUE(svg.starts_with("<svg class=\"for-wide\" viewBox=\"0 0 400 200\""));
      EXPECT_TRUE(svg.ends_with("</svg>"));
      EXPECT_EQ(count_of(svg, "nan") + count_of(svg, "inf"), 0u) << svg;
    }
  }
}

TEST(LineChart, TheScaleIsLogarithmicOnlyWhenSeriesAreFarApart) {
  const auto level = [](double y) { return ChartSeries{"s", "dms", {{0, y}, {1, y}, {2, y}}}; };
  EXPECT_EQ(fitting_scale({level(0.1), level(0.4)}), LineChart::Scale::from_zero);
  EXPECT_EQ(fitting_scale({level(0.1), level(1.2)}), LineChart::Scale::logarithmic);
  EXPECT_EQ(fitting_scale({}), LineChart::Scale::from_zero);
}

TEST(LineChart, ThinningKeepsTheMean) {
  std::vector<std::pair<double, double>> points;
  for (int i = 0; i < 1000; ++i) points.emplace_back(i, i % 2);
  const auto thin = thinned(points, 300);
  EXPECT_EQ(thin.size(), 250u);
  for (const auto& [x, y] : thin) EXPECT_EQ(y, 0.5);
  EXPECT_EQ(thin[0].first, 1.5);
  EXPECT_EQ(thinned(points, 1000), points);
}

TEST(HeadMap, LevelsRiseWithTheShareAndCoverEverything) {
  EXPECT_EQ(share_level(0), 0);
  EXPECT_EQ(share_level(0.0099), 0);
  EXPECT_EQ(share_level(0.01), 1);
  EXPECT_EQ(share_level(0.2), 5);
  EXPECT_EQ(share_level(1), kNumShareLevels - 1);
  EXPECT_EQ(share_level(std::nan("")), 0);
  int last = 0;
  for (int percent = 0; percent <= 100; ++percent) {
    EXPECT_GE(share_level(percent / 100.0), last);
    last = share_level(percent / 100.0);
  }
  EXPECT_EQ(share_level_label(0), "<1");
  EXPECT_EQ(share_level_label(kNumShareLevels - 1), "75–100");
}

TEST(HeadMap, HasACellForEveryHeadAndLayerMeanInBothDirections) {
  const std::vector<std::vector<double>> keep_rate_LG(30, {0.02, 0.3, 0.9});
  for (const auto direction : {LayerDirection::right, LayerDirection::down}) {
    const std::string svg = draw_head_map(keep_rate_LG, direction, 900, "for-wide").html;
    EXPECT_EQ(count_of(svg, "<rect class=\"hit cell"), 30u * 4);
    EXPECT_EQ(count_of(svg, "layer 29, KV head 2\nkeeps 90%"), 1u);
    EXPECT_EQ(count_of(svg, "layer 0, mean of its heads\nkeeps 40.7%"), 1u);
  }
}

TEST(ReportCommands, QuoteWhatAShellWouldSplit) {
  ReportInput input;
  input.run_dir = "my runs/it's one";
  input.model_path = "models/tiny";
  input.held_out_paths = {"a.h5", "b$.h5"};
  EXPECT_EQ(eval_command(input),
            "dms eval --model models/tiny --adapters 'my runs/it'\\''s one' \\\n"
            "  --data a.h5 'b$.h5' \\\n"
            "  --json 'my runs/it'\\''s one/eval.json'");
}

TEST(ParseEval, NamesTheFileAndTheKeyThatIsWrong) {
  const auto problem = [](const std::string& json) -> std::string {
    try {
      parse_eval(json, "eval.json");
    } catch (const UserError& error) {
      return error.where() + " | " + error.problem();
    }
    return "accepted";
  };
  EXPECT_EQ(problem(R"({"kl_mean":0.1,"kv_memory_ratio":5})"), "accepted");
  EXPECT_EQ(problem(R"({"kl_mean":0.1})"), "eval.json | 'kv_memory_ratio' should be a number, but is null");
  EXPECT_EQ(problem(R"({"kl_mean":"x","kv_memory_ratio":5})"),
            "eval.json | 'kl_mean' should be a number, but is \"x\"");
  EXPECT_EQ(problem(R"({"kl_mean":1,"kv_memory_ratio":5,"kl_mean_by_position":[{"from":0,"to":1.5}]})"),
            "eval.json | 'kl_mean_by_position[0].to' should be an integer, but is 1.5");
  EXPECT_EQ(problem(R"({"kl_mean":1,"kv_memory_ratio":5,"per_layer_head_keep_rate":[[0.1,0.2],[0.3]]})"),
            "eval.json | 'per_layer_head_keep_rate[1]' should be as long as the first layer's list, but is [0.3]");
  EXPECT_EQ(problem(R"({"kl_mean":1,"kv_memory_ratio":5,"sample":{"heads_total":0,"tokens":[]}})"),
            "eval.json | 'sample.heads_total' should be at least 1, but is 0");
  EXPECT_EQ(problem(R"({"kl_mean":1,"kv_memory_ratio":5,"sets":{"a":{"kl_mean":1}}})"),
            "eval.json | 'sets.a.kv_memory_ratio' should be a number, but is null");
  EXPECT_EQ(problem("[]"), "eval.json | does not hold an object");
  EXPECT_TRUE(problem("{\"kl_mean\":").starts_with("eval.json:1:")) << problem("{\"kl_mean\":");
}

TEST(ReportHtml, AnEmptyRunSaysForEachPartWhichCommandFillsIt) {
  ReportInput input;
  input.run_dir = "run";
  input.model_name = "Tiny";
  const std::string html = report_html(input);
  // Quality, memory, heads, sample, data sets, decoding, tasks; the training part asks for a training run instead.
  EXPECT_EQ(count_of(html, "Not measured yet."), 7u);
  EXPECT_EQ(count_of(html, "run/metrics.jsonl holds no step"), 1u);
  EXPECT_EQ(count_of(html, "{{"), 0u);
}

TEST(ReportHtml, AnEvaluationWithoutAPartSaysWhatIsMissing) {
  ReportInput input;
  input.run_dir = "run";
  input.eval_path = "eval.json";
  input.has_eval = true;
  input.eval.kl_mean = 0.1;
  input.eval.kv_memory_ratio = 5;
  const std::string html = report_html(input);
  for (const char* key : {"kl_mean_by_position", "memory_by_length", "per_layer_head_keep_rate", "(sample)"}) {
    EXPECT_EQ(count_of(html, key), 1u) << key;
  }
}

}  // namespace
}  // namespace dms
