// `dms plan`, `dms doctor` and the rehearsal of `dms train --dry-run`, as their user meets them.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/child_process.h"
#include "tests/support/sandbox.h"
#include "tests/tools/valid_inputs.h"

namespace dms {
namespace {

using nlohmann::json;

class PlanTest : public ::testing::Test {
 protected:
  PlanTest() : sandbox_(valid_files()) {}

  ChildResult dms(const std::string& command) const {
    ChildOptions options;
    options.directory = sandbox_.path();
    options.environment = {"OMP_NUM_THREADS=1"};
    return run_child(command_line(command), options);
  }
  json plan(const std::string& arguments) const {
    const ChildResult result = dms("plan run.yaml --json plan.json " + arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return json::parse(sandbox_.read("plan.json"));
  }

  Sandbox sandbox_;
};

TEST_F(PlanTest, NeedsNoWeightsAndAddsUp) {
  removed("model/model.safetensors")(sandbox_);
  const json p = plan("--device h100 --nproc 1 trainer.placement=replicate trainer.dtype=bfloat16");
  const json& bytes = p.at("per_rank_bytes");
  // The tiny model: V 300, D 32, two layers of 4 + 2 + 2 heads of 8 and an MLP of 64, tied, in bfloat16.
  constexpr int64_t kParameters = 300 * 32 + 32 + 2 * (32 * 8 * (4 + 2 + 2 + 4) + 3 * 32 * 64 + 2 * 32);
  EXPECT_EQ(bytes.at("weights"), 2 * kParameters);
  // Linear adapter: per layer a norm's weight, a row and a bias for each of two KV heads; Adam keeps two of each.
  EXPECT_EQ(bytes.at("optimizer"), 2 * 4 * 2 * (32 + 2 * 32 + 2));
  EXPECT_EQ(bytes.at("buffers"), 2 * 2 * 64 * 8) << "the rotary tables";
  EXPECT_GE(bytes.at("total").get<int64_t>(), bytes.at("weights").get<int64_t>());
  EXPECT_TRUE(p.at("fits"));
  EXPECT_EQ(p.at("tokens"), 2 * 64 + 128);
  EXPECT_FALSE(p.at("device").at("measured"));
  EXPECT_NE(p.at("device").at("source").get<std::string>().find("H100"), std::string::npos);
}

TEST_F(PlanTest, ShardingDividesTheWeightsAndGathersThem) {
  const json whole = plan("--device h100 --nproc 4 trainer.global_batch=4 trainer.placement=replicate");
  const json sharded = plan("--device h100 --nproc 4 trainer.global_batch=4 trainer.placement=shard");
  EXPECT_EQ(sharded["per_rank_bytes"]["weights"].get<int64_t>(), whole["per_rank_bytes"]["weights"].get<int64_t>() / 4);
  EXPECT_GT(sharded["per_rank_bytes"]["buffers"].get<int64_t>(), 0);
  EXPECT_EQ(whole["communication_seconds"], 0.0);
  EXPECT_GT(sharded["communication_seconds"].get<double>(), 0.0);
}

// Two of two layers pass a GPU by, and turn there; a CPU reads them where they are.
TEST_F(PlanTest, WeightsOfTheHostPassAGpuByLayerByLayer) {
  constexpr int64_t kLayer = 2 * (32 * 8 * (4 + 2 + 2 + 4) + 3 * 32 * 64 + 2 * 32);
  constexpr int64_t kRotaryTables = 2 * 2 * 64 * 8;
  const std::string arguments = " trainer.placement=host trainer.dtype=bfloat16";
  const json gpu = plan("--device h100" + arguments);
  EXPECT_EQ(gpu["per_rank_bytes"]["weights"], 2 * 300 * 32) << "the embedding, which is the head too";
  EXPECT_EQ(gpu["per_rank_bytes"]["buffers"], 2 * kLayer + kRotaryTables);
  EXPECT_DOUBLE_EQ(gpu["communication_seconds"].get<double>(), 2 * kLayer / 64e9);
  const json cpu = plan(arguments);
  EXPECT_EQ(cpu["per_rank_bytes"]["weights"], 0);
  EXPECT_EQ(cpu["per_rank_bytes"]["buffers"], kLayer + kRotaryTables);
  EXPECT_EQ(cpu["communication_seconds"], 0.0);
}

TEST_F(PlanTest, SaysWhatToChangeWhenItDoesNotFit) {
  const int64_t itself = plan("--device h100").at("process_bytes");
  sandbox_.write("small.json", json({{"memory_bytes", itself + 60000000}}).dump());
  const std::string small = "--device h100 --rates small.json trainer.activation_checkpointing=none ";
  const json p = plan(small + "trainer.sequence_length=16384 warm_start.tokens=0");
  EXPECT_FALSE(p.at("fits"));
  EXPECT_TRUE(p.at("device").at("measured"));
  const int64_t largest = p.at("largest_sequence_length");
  EXPECT_GT(largest, 0);
  EXPECT_LT(largest, 16384);
  EXPECT_NE(p.at("suggestions").dump().find("trainer.sequence_length=" + std::to_string(largest)), std::string::npos);
  const std::string at = " warm_start.tokens=0 trainer.sequence_length=";
  EXPECT_TRUE(plan(small + at + std::to_string(largest)).at("fits"));
  EXPECT_FALSE(plan(small + at + std::to_string(largest + 1024)).at("fits"));
}

TEST_F(PlanTest, SuggestsTheLargestBatchThatFits) {
  const std::string arguments =
      "--device h100 warm_start.tokens=0 trainer.sequence_length=4096 trainer.placement=replicate "
      "trainer.activation_checkpointing=full trainer.global_batch=";
  const json two = plan(arguments + "2");
  const int64_t room = two["process_bytes"].get<int64_t>() + two["per_rank_bytes"]["total"].get<int64_t>();
  sandbox_.write("small.json", json({{"memory_bytes", room}}).dump());
  const json five = plan(arguments + "5 --rates small.json");
  EXPECT_FALSE(five.at("fits"));
  EXPECT_NE(five.at("suggestions").dump().find("\"trainer.global_batch=2\""), std::string::npos)
      << five.at("suggestions");
}

TEST_F(PlanTest, RatesOfAnotherShapeAreTheUsersMistake) {
  sandbox_.write("rates.json", R"({"gemm_flops_per_s": "fast"})");
  const ChildResult result = dms("plan run.yaml --device h100 --rates rates.json");
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(result.err.find("rates.json: 'gemm_flops_per_s' is \"fast\""), std::string::npos) << result.err;

  sandbox_.write("rates.json", R"({"steps": {}})");
  const ChildResult none = dms("plan run.yaml --device h100 --rates rates.json");
  EXPECT_EQ(none.exit_code, 2);
  EXPECT_NE(none.err.find("rates.json: holds no rate"), std::string::npos) << none.err;
}

TEST_F(PlanTest, ADryRunRehearsesTheCommunicationOfManyRanks) {
  const ChildResult result =
      dms("train run.yaml --dry-run --nproc 8 trainer.global_batch=12 trainer.placement=shard --run-dir none");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find("a step of 8 ranks, rehearsed: 1 or 2 sequences a rank"), std::string::npos) << result.err;
  // Embedding, two layers and the tied head going up, the same going down; the walk's ends are visited once.
  EXPECT_NE(result.err.find(" in 6 messages (placement: shard)"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find(" in 1 message\n"), std::string::npos) << result.err;
}

TEST_F(PlanTest, TheDoctorChecksEverythingAndPassesHere) {
  const ChildResult result = dms("doctor --json doctor.json");
  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
  const json report = json::parse(sandbox_.read("doctor.json"));
  EXPECT_TRUE(report.at("passed"));
  std::map<std::string, json> checks;
  for (const json& check : report.at("checks")) checks[check.at("name")] = check;
  for (const char* name : {"program", "LibTorch", "processor", "GPUs"}) EXPECT_TRUE(checks.contains(name)) << name;
  for (const char* name :
       {"memory", "matrix products", "disk", "link between two ranks", "attention on cpu, float32"}) {
    ASSERT_TRUE(checks.contains(name)) << name;
    EXPECT_GT(checks[name].at("value").get<double>(), 0.0) << name;
  }
  EXPECT_LT(checks["attention on cpu, float32"].at("value").get<double>(), 1e-4);
}

TEST_F(PlanTest, TheDoctorNamesAFaultAndItsRemedy) {
  const ChildResult result = dms("doctor --dir no-such-directory --json doctor.json");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.out.find("FAIL disk: "), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("name a directory that can be written to: --dir"), std::string::npos) << result.out;
  EXPECT_FALSE(json::parse(sandbox_.read("doctor.json")).at("passed"));
}

}  // namespace
}  // namespace dms
