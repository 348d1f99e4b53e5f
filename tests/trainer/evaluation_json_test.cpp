#include "trainer/evaluation_json.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

namespace dms {
namespace {

using nlohmann::json;

// A record whose every figure is arithmetic: kl of window w at position t is 100 w + t.
EvaluationRecord record_of(int64_t first_window, int64_t num_windows, int64_t length) {
  EvaluationRecord r;
  r.sequence_length = length;
  r.window = 3;
  r.num_windows = num_windows;
  r.kept = {{3.0, 1.0}, {0.0, 4.0}};
  r.counted = {{4.0, 4.0}, {4.0, 4.0}};
  r.memory_by_length = {
      {length, num_windows, 1000.0 * static_cast<double>(num_windows), 200.0 * static_cast<double>(num_windows)}};
  r.noise_floor_kl_sum = 0.5;
  r.noise_floor_tokens = length;
  r.baseline_live_keys = 6;
  for (MethodRecord* m : {&r.student, &r.sliding_window, &r.streaming_llm}) {
    for (int64_t w = first_window; w < first_window + num_windows; ++w) {
      for (int64_t t = 0; t < length; ++t) m->kl.push_back(static_cast<float>(100 * w + t));
    }
    m->same_top1 = 3.0 * static_cast<double>(num_windows);
    m->nll_count = num_windows * (length - 1);
    m->nll_sum = 2.0 * static_cast<double>(m->nll_count);
    m->dense_bytes = 1000 * num_windows;
    m->allocated_bytes = 200 * num_windows;
    m->live_bytes = 160 * num_windows;
    m->dense_keys_read = 900;
    m->keys_read = 300;
  }
  for (size_t i = 0; i < r.student.kl.size(); ++i) {
    // Every second target is new, the others have stood 1 to length tokens ago.
    const auto t = static_cast<int32_t>(i) % static_cast<int32_t>(length);
    r.last_use.push_back(t + 1 == length ? -1 : t % 2 == 0 ? 0 : t);
  }
  r.teacher_nll_sum = 1.0 * static_cast<double>(r.student.nll_count);
  r.sample_tokens = {5, 6, 7};
  r.sample_kept_heads = {4, 0, 2};
  return r;
}

const EvaluationContext kContext{"linear", "per_head", "tiny", 17, 0.0, {}};

json figures(const std::vector<std::pair<std::string, EvaluationRecord>>& sets,
             const EvaluationContext& context = kContext) {
  return json::parse(evaluation_json(sets, context));
}

TEST(EvaluationJson, HoldsEveryPromisedKey) {
  const json j = figures({{"a", record_of(0, 1, 20)}, {"b", record_of(1, 1, 20)}});
  const std::vector<std::string> keys{"kl_mean",
                                      "kl_mean_second_half",
                                      "kl_p95",
                                      "kl_p99_9",
                                      "kl_max",
                                      "top1_agreement",
                                      "kl_mean_by_position",
                                      "kl_mean_by_last_use",
                                      "ppl_teacher",
                                      "ppl_student",
                                      "eviction_rate",
                                      "kv_memory_ratio",
                                      "kv_read_ratio",
                                      "sliding_window",
                                      "streaming_llm",
                                      "per_layer_head_keep_rate",
                                      "noise_floor_kl",
                                      "tokens",
                                      "sequence_length",
                                      "window",
                                      "adapter"};
  for (const std::string& key : keys) {
    EXPECT_TRUE(j.contains(key)) << key;
    for (const char* set : {"a", "b"}) EXPECT_TRUE(j.at("sets").at(set).contains(key)) << set << " " << key;
  }
  for (const char* baseline : {"sliding_window", "streaming_llm"}) {
    for (const char* key : {"kl_mean", "kl_mean_second_half", "kv_memory_ratio", "kl_mean_by_last_use"}) {
      EXPECT_TRUE(j.at(baseline).contains(key)) << baseline << " " << key;
    }
  }
  EXPECT_FALSE(figures({{"a", record_of(0, 1, 20)}}).contains("sets"));
}

TEST(EvaluationJson, FiguresAreTheirArithmetic) {
  const json j = figures({{"a", record_of(0, 2, 20)}});
  EXPECT_DOUBLE_EQ(j.at("kl_mean"), 50.0 + 9.5);
  EXPECT_DOUBLE_EQ(j.at("kl_mean_second_half"), 50.0 + 14.5);
  EXPECT_DOUBLE_EQ(j.at("kl_p95"), 117.0);                                     // the 38th of 40
  EXPECT_DOUBLE_EQ(j.at("kl_p99_9"), 119.0);                                   // the 40th
  EXPECT_DOUBLE_EQ(figures({{"a", record_of(0, 1, 31)}}).at("kl_p95"), 29.0);  // 29.45 of 31: the 30th
  EXPECT_DOUBLE_EQ(j.at("kl_max"), 119.0);
  EXPECT_DOUBLE_EQ(j.at("top1_agreement"), 6.0 / 40.0);
  EXPECT_DOUBLE_EQ(j.at("ppl_teacher"), std::exp(1.0));
  EXPECT_DOUBLE_EQ(j.at("ppl_student"), std::exp(2.0));
  EXPECT_DOUBLE_EQ(j.at("eviction_rate"), 0.5);
  EXPECT_DOUBLE_EQ(j.at("kv_memory_ratio"), 5.0);
  EXPECT_DOUBLE_EQ(j.at("kv_read_ratio"), 3.0);
  EXPECT_DOUBLE_EQ(j.at("allocated_over_live_bytes"), 1.25);
  EXPECT_DOUBLE_EQ(j.at("noise_floor_kl"), 0.025);
  EXPECT_EQ(j.at("per_layer_head_keep_rate"), json::parse("[[0.75, 0.25], [0.0, 1.0]]"));
  EXPECT_EQ(j.at("tokens"), 40);
  EXPECT_EQ(j.at("sequence_length"), 20);
  EXPECT_EQ(j.at("window"), 3);
  EXPECT_EQ(j.at("adapter"), "linear");
  EXPECT_EQ(j.at("adapter_bias"), "per_head");
  EXPECT_EQ(j.at("step"), 17);
  EXPECT_DOUBLE_EQ(j.at("sliding_window").at("kl_mean"), 59.5);
  EXPECT_EQ(j.at("memory_by_length"),
            json::parse(R"([{"tokens": 20, "dense_bytes": 1000.0, "allocated_bytes": 200.0}])"));
}

TEST(EvaluationJson, PositionBinsTileTheSequence) {
  for (int64_t length : {3, 16, 20, 1000}) {
    const json bins = figures({{"a", record_of(0, 2, length)}}).at("kl_mean_by_position");
    EXPECT_EQ(bins.size(), static_cast<size_t>(std::min<int64_t>(16, length)));
    int64_t next = 0;
    for (const json& bin : bins) {
      EXPECT_EQ(bin.at("from"), next);
      next = bin.at("to");
      EXPECT_DOUBLE_EQ(bin.at("kl_mean"), 50.0 + (bin.at("from").get<double>() + next - 1) / 2.0);
    }
    EXPECT_EQ(next, length);
  }
}

TEST(EvaluationJson, KlByLastUseHasPowersOfTwoAndNewTokensApart) {
  const json j = figures({{"a", record_of(0, 1, 8)}});
  // Positions 0, 2, 4, 6 predict new tokens; 1, 3, 5 what stood as many tokens ago; 7 nothing.
  EXPECT_EQ(j.at("kl_mean_by_last_use"), json::parse(R"([{"from": 0, "to": 1, "tokens": 4, "kl_mean": 3.0},
      {"from": 1, "to": 2, "tokens": 1, "kl_mean": 1.0}, {"from": 2, "to": 4, "tokens": 1, "kl_mean": 3.0},
      {"from": 4, "to": 8, "tokens": 1, "kl_mean": 5.0}])"));
  EXPECT_EQ(j.at("streaming_llm").at("kl_mean_by_last_use"), j.at("kl_mean_by_last_use"));
}

TEST(EvaluationJson, DriftIsOfTheLiveKeysAgainstTheRatioAskedFor) {
  EvaluationContext context = kContext;
  EXPECT_FALSE(figures({{"a", record_of(0, 1, 20)}}).contains("ratio_drift"));
  context.target_ratio = 5.0;
  EvaluationRecord other = record_of(1, 1, 20);
  other.student.live_bytes = 200;
  const json j = figures({{"a", record_of(0, 1, 20)}, {"b", other}}, context);
  EXPECT_DOUBLE_EQ(j.at("target_ratio"), 5.0);
  EXPECT_DOUBLE_EQ(j.at("sets").at("a").at("ratio_drift"), 0.25);  // 1000 / 160 = 6.25
  EXPECT_DOUBLE_EQ(j.at("sets").at("b").at("ratio_drift"), 0.0);
  EXPECT_DOUBLE_EQ(j.at("kv_live_ratio"), 2000.0 / 360.0);
}

TEST(EvaluationJson, PooledIsTheConcatenationOfTheSets) {
  json pooled = figures({{"a", record_of(0, 1, 20)}, {"b", record_of(1, 3, 20)}});
  json one = figures({{"all", record_of(0, 4, 20)}});
  pooled.erase("sets");
  for (json* j : {&pooled, &one}) {
    // Sums that this file's records do not scale with the number of windows.
    for (const char* key : {"per_layer_head_keep_rate", "kv_read_ratio", "noise_floor_kl", "eviction_rate"})
      j->erase(key);
  }
  EXPECT_EQ(pooled, one);
  EXPECT_DOUBLE_EQ(pooled.at("kl_mean"), 150.0 + 9.5);
}

TEST(EvaluationJson, PoolsMemoryByLengthOverTheSequencesThatReachedIt) {
  EvaluationRecord documents = record_of(0, 3, 20);
  documents.memory_by_length.clear();  // windows of several documents have no such curve
  for (const auto& sets :
       {std::vector<std::pair<std::string, EvaluationRecord>>{{"a", documents}, {"b", record_of(3, 1, 20)}},
        {{"a", record_of(0, 1, 20)}, {"b", documents}}}) {
    EXPECT_EQ(figures(sets).at("memory_by_length"),
              json::parse(R"([{"tokens": 20, "dense_bytes": 1000.0, "allocated_bytes": 200.0}])"));
  }
}

TEST(EvaluationJson, SampleShowsTokensAndSurvivesHalfCharacters) {
  EvaluationContext context = kContext;
  context.sample_texts = {"a", "\xC3", " b"};
  const json sample = figures({{"a", record_of(0, 1, 20)}}, context).at("sample");
  EXPECT_EQ(sample.at("heads_total"), 4);
  EXPECT_EQ(sample.at("tokens"),
            json::parse("[{\"text\": \"a\", \"kept_heads\": 4}, {\"text\": \"\xEF\xBF\xBD\", \"kept_heads\": 0},"
                        " {\"text\": \" b\", \"kept_heads\": 2}]"));
  EXPECT_FALSE(figures({{"a", record_of(0, 1, 20)}}).contains("sample"));
}

TEST(EvaluationJson, RecordsOfDifferentLengthsDoNotPool) {
  EXPECT_THROW(figures({{"a", record_of(0, 1, 20)}, {"b", record_of(0, 1, 30)}}), c10::Error);
}

TEST(EvaluationTable, ShowsEachSetAndAll) {
  const std::string table = evaluation_table({{"perl", record_of(0, 1, 20)}, {"git", record_of(1, 1, 20)}});
  EXPECT_NE(table.find("\nperl                        5.00x     9.5000    14.5000"), std::string::npos) << table;
  EXPECT_NE(table.find("\nall                         5.00x    59.5000    64.5000"), std::string::npos) << table;
}

}  // namespace
}  // namespace dms
