// `dms generate` and `dms bench decode`: what they print and write hangs together.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/child_process.h"
#include "tests/support/sandbox.h"
#include "tests/support/tiny_model.h"
#include "tests/tools/valid_inputs.h"

namespace dms {
namespace {

using nlohmann::json;

ChildResult run_in(Sandbox& sandbox, const std::string& command) {
  ChildOptions options;
  options.directory = sandbox.path();
  options.environment = {"OMP_NUM_THREADS=1"};
  ChildResult result = run_child(command_line(command), options);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return result;
}

TEST(Generate, StreamsOneCompletionAndWritesIt) {
  Sandbox sandbox(valid_files());
  const ChildResult result =
      run_in(sandbox, "generate --model model --adapters run --prompt the --max-new-tokens 12 --json out.json");
  const json out = json::parse(sandbox.read("out.json"));
  ASSERT_EQ(out.at("completions").size(), 1U);
  const json& completion = out.at("completions").at(0);
  EXPECT_EQ(completion.at("prompt"), "the");
  EXPECT_EQ(result.out, completion.at("text").get<std::string>() + "\n");
  EXPECT_EQ(completion.at("stopped").get<bool>() ? completion.at("tokens") <= 12 : completion.at("tokens") == 12, true);
  EXPECT_GT(out.at("peak_kv_bytes"), 0);
}

TEST(Generate, TakesPromptsFromFilesAndSamplesEachReproducibly) {
  Sandbox sandbox(valid_files());
  sandbox.write("prompts.jsonl", "{\"prompt\": \"one two\"}\n\n{\"prompt\": \"three\"}\n");
  const std::string command =
      "generate --model model --prompts prompts.jsonl --samples 2 --temperature 1 --seed 5 --max-new-tokens 6 --json ";
  run_in(sandbox, command + "a.json");
  run_in(sandbox, command + "b.json --max-batch 1");
  const json a = json::parse(sandbox.read("a.json")).at("completions");
  ASSERT_EQ(a.size(), 4U);
  EXPECT_EQ(a.at(1).at("prompt"), "one two");
  EXPECT_EQ(a.at(2).at("prompt"), "three");
  EXPECT_NE(a.at(0).at("text"), a.at(1).at("text")) << "two samples drew the same numbers";
  EXPECT_EQ(json::parse(sandbox.read("b.json")).at("completions"), a);
}

TEST(BenchDecode, FiguresAgreeWithEachOther) {
  Sandbox sandbox(valid_files());
  run_in(sandbox,
         "bench decode --model model --adapters run --context 40 --batch 3 --distinct 2 --steps 3 --data held-out.h5 "
         "--dtype float32 --json out.json");
  const json out = json::parse(sandbox.read("out.json"));
  ASSERT_EQ(out.at("rows").size(), 2U);
  for (const json& row : out.at("rows")) {
    EXPECT_EQ(row.at("sequences"), 3);
    EXPECT_DOUBLE_EQ(row.at("tokens_per_s").get<double>() * row.at("step_seconds").get<double>(), 3.0);
  }
  // Nothing evicted: 3 sequences of 40 + 5 tokens in every layer and KV head, and at most a page more.
  const TinyModel m;
  const int64_t heads = m.num_layers * m.num_kv_heads, row_bytes = 2 * m.head_dim * 4;
  const int64_t dense = out.at("rows").at(0).at("kv_bytes");
  EXPECT_GE(dense, 3 * heads * 45 * row_bytes);
  EXPECT_LE(dense, 3 * heads * (53 * row_bytes + 53 * 16));
  EXPECT_LE(out.at("rows").at(1).at("kv_bytes"), dense);
  EXPECT_GT(out.at("read_bandwidth_bytes_per_s"), 1e8);
}

TEST(BenchDecode, TakesListsOfContextsAndBatchesAndDrawsThem) {
  Sandbox sandbox(valid_files());
  run_in(sandbox,
         "bench decode --model model --adapters run --context 40,20 --batch 3,1 --distinct 1 --steps 1 --dtype float32 "
         "--kv-dtype int8 --json out.json --plot speed.html");
  const json out = json::parse(sandbox.read("out.json"));
  EXPECT_EQ(out.at("kv_dtype"), "int8");
  std::vector<std::vector<int64_t>> rows;
  for (const json& row : out.at("rows"))
    rows.push_back({row.at("context"), row.at("evict").get<bool>() ? 1 : 0, row.at("batch")});
  EXPECT_EQ(rows, (std::vector<std::vector<int64_t>>{
                      {20, 0, 1}, {20, 0, 3}, {20, 1, 1}, {20, 1, 3}, {40, 0, 1}, {40, 0, 3}, {40, 1, 1}, {40, 1, 3}}));
  // Nothing evicted, 40 + 3 tokens: an int8 row is its elements and a scale; beside a pair of rows, 8 bytes.
  const TinyModel m;
  const int64_t row_bytes = m.num_layers * m.num_kv_heads * (2 * (m.head_dim + 4) + 8);
  const int64_t bytes = out.at("rows").at(5).at("kv_bytes");
  EXPECT_GE(bytes, 3 * 43 * row_bytes);
  EXPECT_LE(bytes, 3 * 51 * row_bytes);
  const std::string page = sandbox.read("speed.html");
  EXPECT_NE(page.find("Speed after 20 tokens."), std::string::npos);
  EXPECT_NE(page.find("Memory after 40 tokens."), std::string::npos);
  EXPECT_EQ(page.find("{{"), std::string::npos);
}

TEST(BenchDecode, DrawsAnEqualBudgetAsBars) {
  Sandbox sandbox(valid_files());
  run_in(sandbox,
         "bench decode --model model --adapters run --context 40 --kv-budget 256KiB --distinct 1 --steps 1 --dtype "
         "float32 --json out.json --plot speed.html");
  const json rows = json::parse(sandbox.read("out.json")).at("rows");
  ASSERT_EQ(rows.size(), 2U);
  for (const json& row : rows) {
    EXPECT_EQ(row.at("kv_budget_bytes"), 256 << 10);
    EXPECT_LE(row.at("kv_bytes"), 256 << 10);
  }
  const std::string page = sandbox.read("speed.html");
  EXPECT_NE(page.find("Speed in 256 KiB of KV memory, after 40 tokens."), std::string::npos);
  EXPECT_NE(page.find("bar dms"), std::string::npos);
}

// The valid files' calibration text is their evaluation text, so that what is asked for is what is reached.
TEST(TargetRatio, MovesTheThresholdForWhateverRunsTheEvictor) {
  Sandbox sandbox(valid_files());
  const std::string target = " --calibration train.h5 --calibration-length 64 --target-ratio ";
  for (const std::string offsets : {"", " --per-head-offsets"}) {
    run_in(sandbox,
           "eval --model model --adapters run --data held-out.h5 --no-baselines --max-tokens 8192 --json e.json" +
               target + "2.5" + offsets);
    const json e = json::parse(sandbox.read("e.json"));
    EXPECT_EQ(e.at("target_ratio"), 2.5);
    EXPECT_NEAR(e.at("ratio_drift"), 0.0, 0.05) << offsets;
    EXPECT_DOUBLE_EQ(e.at("kv_live_ratio").get<double>(), 2.5 * (1.0 + e.at("ratio_drift").get<double>()));
    // Kept in a file, the same threshold.
    run_in(sandbox, "retarget --force --model model --adapters run --data train.h5 --ratio 2.5 --out moved" + offsets);
    run_in(sandbox,
           "eval --model model --adapters moved --data held-out.h5 --no-baselines --max-tokens 8192 --json m.json");
    EXPECT_EQ(json::parse(sandbox.read("m.json")).at("kv_live_ratio"), e.at("kv_live_ratio")) << offsets;
  }
  run_in(
      sandbox,
      "recall --model model --adapters run --data held-out.h5 --sequence-length 256 --texts 1 --facts 1 --json r.json" +
          target + "3");
  EXPECT_GT(json::parse(sandbox.read("r.json")).at("student").at("live_compression"), 2.0);
  std::vector<int64_t> bytes;
  for (const char* ratio : {"1.1", "5"}) {
    run_in(sandbox,
           "generate --model model --adapters run --prompt one --max-new-tokens 100 --temperature 0 --json g.json" +
               target + ratio);
    bytes.push_back(json::parse(sandbox.read("g.json")).at("peak_kv_bytes"));
    run_in(sandbox,
           "bench decode --model model --adapters run --context 64 --batch 1 --steps 1 --json b.json" + target + ratio);
    bytes.push_back(json::parse(sandbox.read("b.json")).at("rows").at(1).at("kv_bytes"));
  }
  EXPECT_LT(bytes[2], bytes[0]);
  EXPECT_LT(bytes[3], bytes[1]);
}

TEST(Generate, StoresKeysAndValuesInEveryFormat) {
  Sandbox sandbox(valid_files());
  std::map<std::string, int64_t> bytes;
  for (const std::string format : {"float32", "bfloat16", "int8", "fp8"}) {
    run_in(sandbox,
           "generate --model model --prompt one --max-new-tokens 30 --temperature 0 --dtype float32 --kv-dtype " +
               format + " --json out.json");
    const json out = json::parse(sandbox.read("out.json"));
    EXPECT_EQ(out.at("completions").at(0).at("prompt"), "one");
    bytes[format] = out.at("peak_kv_bytes");
  }
  EXPECT_LT(bytes["bfloat16"], bytes["float32"]);
  EXPECT_LT(bytes["int8"], bytes["bfloat16"]);
  EXPECT_EQ(bytes["int8"], bytes["fp8"]);
}

}  // namespace
}  // namespace dms
