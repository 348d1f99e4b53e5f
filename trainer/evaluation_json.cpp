#include "trainer/evaluation_json.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <span>

#include "trainer/last_use.h"

namespace dms {

namespace {

using nlohmann::ordered_json;
constexpr int64_t kPositionBins = 16;

double mean_of(std::span<const double> values) {
  double sum = 0.0;
  for (double value : values) sum += value;
  return values.empty() ? 0.0 : sum / static_cast<double>(values.size());
}

// Mean KL over positions [from, to) of every window.
double kl_between(const std::vector<float>& kl, int64_t sequence_length, int64_t from, int64_t to) {
  double sum = 0.0;
  const auto num_windows = static_cast<int64_t>(kl.size()) / sequence_length;
  for (int64_t w = 0; w < num_windows; ++w) {
    for (int64_t t = from; t < to; ++t) sum += kl[static_cast<size_t>(w * sequence_length + t)];
  }
  return num_windows == 0 || to == from ? 0.0 : sum / static_cast<double>(num_windows * (to - from));
}

double kl_quantile(std::vector<float> kl, double fraction) {
  if (kl.empty()) return 0.0;
  const auto rank = static_cast<size_t>(std::ceil(fraction * static_cast<double>(kl.size()))) - 1;
  std::nth_element(kl.begin(), kl.begin() + static_cast<std::ptrdiff_t>(rank), kl.end());
  return kl[rank];
}

double ratio(double numerator, double denominator) { return denominator == 0.0 ? 0.0 : numerator / denominator; }

// Dense over live bytes at the ends of the sequences.
double live_ratio(const MethodRecord& m) {
  return ratio(static_cast<double>(m.dense_bytes), static_cast<double>(m.live_bytes));
}

ordered_json by_position(const std::vector<float>& kl, int64_t sequence_length) {
  ordered_json bins = ordered_json::array();
  const int64_t num_bins = std::min(kPositionBins, sequence_length);
  for (int64_t b = 0; b < num_bins; ++b) {
    const int64_t from = sequence_length * b / num_bins, to = sequence_length * (b + 1) / num_bins;
    bins.push_back({{"from", from}, {"to", to}, {"kl_mean", kl_between(kl, sequence_length, from, to)}});
  }
  return bins;
}

ordered_json by_last_use(const MethodRecord& m, const EvaluationRecord& r) {
  ordered_json buckets = ordered_json::array();
  for (const LastUseBucket& bucket : kl_by_last_use(m.kl, r.last_use)) {
    buckets.push_back(
        {{"from", bucket.from}, {"to", bucket.to}, {"tokens", bucket.num_tokens}, {"kl_mean", bucket.kl_mean}});
  }
  return buckets;
}

ordered_json method_json(const MethodRecord& m, const EvaluationRecord& r) {
  const int64_t sequence_length = r.sequence_length;
  return {{"kl_mean", kl_between(m.kl, sequence_length, 0, sequence_length)},
          {"kl_mean_second_half", kl_between(m.kl, sequence_length, sequence_length / 2, sequence_length)},
          {"kv_memory_ratio", ratio(static_cast<double>(m.dense_bytes), static_cast<double>(m.allocated_bytes))},
          {"kl_mean_by_position", by_position(m.kl, sequence_length)},
          {"kl_mean_by_last_use", by_last_use(m, r)},
          {"ppl", std::exp(ratio(m.nll_sum, static_cast<double>(m.nll_count)))}};
}

ordered_json keep_rates(const EvaluationRecord& r) {
  ordered_json layers = ordered_json::array();
  for (size_t layer = 0; layer < r.kept.size(); ++layer) {
    ordered_json heads = ordered_json::array();
    for (size_t g = 0; g < r.kept[layer].size(); ++g) heads.push_back(ratio(r.kept[layer][g], r.counted[layer][g]));
    layers.push_back(std::move(heads));
  }
  return layers;
}

double eviction_rate(const EvaluationRecord& r) {
  double kept = 0.0, counted = 0.0;
  for (size_t layer = 0; layer < r.kept.size(); ++layer) {
    kept += mean_of(r.kept[layer]) * static_cast<double>(r.kept[layer].size());
    counted += mean_of(r.counted[layer]) * static_cast<double>(r.counted[layer].size());
  }
  return 1.0 - ratio(kept, counted);
}

ordered_json record_json(const EvaluationRecord& r, const EvaluationContext& context) {
  const MethodRecord& s = r.student;
  const double num_tokens = static_cast<double>(s.kl.size());
  ordered_json json{
      {"kl_mean", kl_between(s.kl, r.sequence_length, 0, r.sequence_length)},
      {"kl_mean_second_half", kl_between(s.kl, r.sequence_length, r.sequence_length / 2, r.sequence_length)},
      {"kl_p95", kl_quantile(s.kl, 0.95)},
      {"kl_p99_9", kl_quantile(s.kl, 0.999)},
      {"kl_max", s.kl.empty() ? 0.0 : static_cast<double>(*std::max_element(s.kl.begin(), s.kl.end()))},
      {"top1_agreement", ratio(s.same_top1, num_tokens)},
      {"kl_mean_by_position", by_position(s.kl, r.sequence_length)},
      {"kl_mean_by_last_use", by_last_use(s, r)},
      {"ppl_teacher", std::exp(ratio(r.teacher_nll_sum, static_cast<double>(s.nll_count)))},
      {"ppl_student", std::exp(ratio(s.nll_sum, static_cast<double>(s.nll_count)))},
      {"eviction_rate", eviction_rate(r)},
      {"kv_memory_ratio", ratio(static_cast<double>(s.dense_bytes), static_cast<double>(s.allocated_bytes))},
      {"kv_read_ratio", ratio(static_cast<double>(s.dense_keys_read), static_cast<double>(s.keys_read))},
      {"allocated_over_live_bytes", ratio(static_cast<double>(s.allocated_bytes), static_cast<double>(s.live_bytes))}};
  json["kv_live_ratio"] = live_ratio(s);
  if (context.target_ratio > 0.0) {
    json["target_ratio"] = context.target_ratio;
    json["ratio_drift"] = live_ratio(s) / context.target_ratio - 1.0;
  }
  if (r.baseline_live_keys > 0) {
    json["baseline_live_keys"] = r.baseline_live_keys;
    json["sliding_window"] = method_json(r.sliding_window, r);
    json["streaming_llm"] = method_json(r.streaming_llm, r);
  }
  json["per_layer_head_keep_rate"] = keep_rates(r);
  ordered_json memory = ordered_json::array();
  for (const auto& row : r.memory_by_length) {
    memory.push_back({{"tokens", row.tokens},
                      {"dense_bytes", row.dense_bytes / static_cast<double>(row.num_sequences)},
                      {"allocated_bytes", row.allocated_bytes / static_cast<double>(row.num_sequences)}});
  }
  json["memory_by_length"] = std::move(memory);
  json["noise_floor_kl"] = ratio(r.noise_floor_kl_sum, static_cast<double>(r.noise_floor_tokens));
  json["tokens"] = static_cast<int64_t>(s.kl.size());
  json["sequence_length"] = r.sequence_length;
  json["window"] = r.window;
  json["adapter"] = context.adapter;
  json["adapter_bias"] = context.adapter_bias;
  json["step"] = context.step;
  json["model"] = context.model;
  return json;
}

ordered_json sample_json(const EvaluationRecord& r, const EvaluationContext& context) {
  ordered_json tokens = ordered_json::array();
  const size_t count = std::min(context.sample_texts.size(), r.sample_kept_heads.size());
  for (size_t t = 0; t < count; ++t) {
    tokens.push_back({{"text", context.sample_texts[t]}, {"kept_heads", r.sample_kept_heads[t]}});
  }
  size_t heads = 0;
  for (const auto& layer : r.kept) heads += layer.size();
  return {{"tokens", std::move(tokens)}, {"heads_total", heads}};
}

EvaluationRecord pooled(const std::vector<std::pair<std::string, EvaluationRecord>>& sets) {
  EvaluationRecord all;
  for (const auto& [name, record] : sets) all.append(record);
  return all;
}

}  // namespace

std::string evaluation_json(const std::vector<std::pair<std::string, EvaluationRecord>>& sets,
                            const EvaluationContext& context) {
  ordered_json json = record_json(pooled(sets), context);
  if (sets.size() > 1) {
    for (const auto& [name, record] : sets) json["sets"][name] = record_json(record, context);
  }
  if (!context.sample_texts.empty()) json["sample"] = sample_json(sets.front().second, context);
  // Token texts may end inside a character; such bytes become U+FFFD.
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::string drift_table(const std::vector<std::pair<std::string, EvaluationRecord>>& sets, double target_ratio) {
  std::string table;
  char line[256];
  std::snprintf(line, sizeof(line), "target %-17.2f %8s %10s\n", target_ratio, "live", "drift");
  table += line;
  const auto add_row = [&](const std::string& name, const EvaluationRecord& r) {
    const double reached = live_ratio(r.student);
    std::snprintf(line, sizeof(line), "%-24s %7.2fx %+9.1f%%\n", name.c_str(), reached,
                  100.0 * (reached / target_ratio - 1.0));
    table += line;
  };
  for (const auto& [name, record] : sets) add_row(name, record);
  if (sets.size() > 1) add_row("all", pooled(sets));
  return table;
}

std::string evaluation_table(const std::vector<std::pair<std::string, EvaluationRecord>>& sets) {
  const bool with_baselines = !sets.empty() && sets.front().second.baseline_live_keys > 0;
  std::string table;
  char text[256];
  const auto add = [&](const char* pattern, auto... values) {
    std::snprintf(text, sizeof(text), pattern, values...);
    table += text;
  };
  add("%-24s %8s %10s %10s", "", "KV", "KL", "KL 2nd");
  if (with_baselines) add(" %21s %21s", "sliding window KL", "sinks+window KL");
  table += "\n";
  const auto add_row = [&](const std::string& name, const EvaluationRecord& r) {
    const int64_t length = r.sequence_length;
    const auto add_kl = [&](const MethodRecord& m) {
      add(" %10.4f %10.4f", kl_between(m.kl, length, 0, length), kl_between(m.kl, length, length / 2, length));
    };
    add("%-24s %7.2fx", name.c_str(),
        ratio(static_cast<double>(r.student.dense_bytes), static_cast<double>(r.student.allocated_bytes)));
    add_kl(r.student);
    if (with_baselines) {
      add_kl(r.sliding_window);
      add_kl(r.streaming_llm);
    }
    table += "\n";
  };
  for (const auto& [name, record] : sets) add_row(name, record);
  if (sets.size() > 1) add_row("all", pooled(sets));
  return table;
}

}  // namespace dms
