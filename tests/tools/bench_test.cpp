// `dms bench`: its figures hang together.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/child_process.h"
#include "tests/support/sandbox.h"
#include "tests/support/tiny_model.h"
#include "tests/tools/valid_inputs.h"

namespace dms {
namespace {

using nlohmann::json;

json bench(const std::string& command) {
  Sandbox sandbox(valid_files());
  ChildOptions options;
  options.directory = sandbox.path();
  options.environment = {"OMP_NUM_THREADS=1"};
  const ChildResult result = run_child(command_line("bench " + command + " --json figures.json"), options);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, sandbox.read("figures.json"));
  return json::parse(result.out);
}

json bench_train_step(const std::string& flags) { return bench("train-step --model model " + flags); }

TEST(BenchTrainStep, FiguresAgreeWithEachOther) {
  const json figures = bench_train_step("--seq 64 --window 8 --steps 4 --dtype float32");
  const double seconds = figures.at("step_seconds");
  EXPECT_GT(seconds, 0.0);
  EXPECT_LE(figures.at("step_seconds_min"), seconds);
  EXPECT_GE(figures.at("step_seconds_max"), seconds);
  EXPECT_DOUBLE_EQ(figures.at("tokens_per_s").get<double>() * seconds, 64.0);
  EXPECT_EQ(figures.at("dtype"), "float32");
  EXPECT_EQ(figures.at("threads"), 1);

  // Teacher and student forward and the backward of activations: three products a weight.  Attention: 1 + 1 + 2.5
  // times two products over half of all (query, key) pairs.
  const TinyModel m;
  const int64_t projections = 2 * (m.num_heads + m.num_kv_heads) * m.head_dim * m.hidden_size;
  const int64_t weights =
      m.num_layers * (projections + 3 * m.hidden_size * m.intermediate_size) + m.vocab_size * m.hidden_size;
  const int64_t pairs = 64 * 64 / 2;
  const double flops = 3.0 * static_cast<double>(2 * weights * 64) +
                       4.5 * static_cast<double>(4 * m.num_layers * m.num_heads * m.head_dim * pairs);
  EXPECT_NEAR(figures.at("mfu").get<double>() * figures.at("gemm_flops_per_s").get<double>() * seconds, flops,
              1e-9 * flops);
  EXPECT_GT(figures.at("gemm_flops_per_s"), 1e8);
  EXPECT_GT(figures.at("peak_memory_bytes"), int64_t{20} << 20);  // LibTorch alone
}

TEST(BenchTrainStep, TakesTrainedAdaptersAndSettings) {
  const json figures = bench_train_step("--seq 32 --window 4 --steps 1 --adapters run --activation-checkpointing full");
  EXPECT_GT(figures.at("tokens_per_s"), 0.0);
  EXPECT_EQ(figures.at("activation_checkpointing"), "full");
  EXPECT_EQ(figures.at("step_seconds_min"), figures.at("step_seconds_max"));
}

void expect_timing(const json& passes) {
  for (const std::string pass : {"forward", "backward"}) {
    EXPECT_GT(passes.at(pass), 0.0);
    EXPECT_LE(passes.at(pass + "_min"), passes.at(pass));
    EXPECT_GE(passes.at(pass + "_max"), passes.at(pass));
  }
}

TEST(BenchAttention, CountsTheSurvivorsAndFlopsOfTheBuiltInProfile) {
  // 24 heads of the profile: 12.5% kept and 15% soft on average, dealt evenly.
  const json figures = bench(
      "attention --seq 1500 --window 8 --heads 6 --kv-heads 3 --head-dim 8 --layers 8 --repeat 2 --dtype float32");
  EXPECT_NEAR(figures.at("kept_share"), 0.125, 0.02);
  EXPECT_NEAR(figures.at("soft_share"), 0.15, 0.02);
  EXPECT_EQ(figures.at("layers"), 8);
  for (const char* way : {"causal_seconds", "two_part_seconds", "sparse_seconds", "dense_seconds"}) {
    SCOPED_TRACE(way);
    expect_timing(figures.at(way));
  }
  const double causal = 6.0 * 4.0 * 8.0 * 1500.0 * 1501.0 / 2.0;
  EXPECT_DOUBLE_EQ(figures.at("causal_forward_flops"), causal);
  // 1491 far rows in blocks of 64: each row sees 73 keys of its own block, and the survivors before the block.
  const double rows = 1491.0, pairs = 1500.0 * 1501.0 / 2.0;
  EXPECT_NEAR(figures.at("sparse_forward_flops").get<double>() / causal,
              (rows * 73.0 + 0.275 * (rows * rows / 2.0 - rows * 32.0)) / pairs, 0.03);
  EXPECT_EQ(figures.at("dtype"), "float32");
}

TEST(BenchAttention, ChoosesAsTrainingDoes) {
  const json figures =
      bench("attention --seq 640 --window 8 --heads 2 --kv-heads 1 --head-dim 8 --layers 30 --repeat 1");
  const auto seconds = [](const json& passes) {
    return passes.at("forward").get<double>() + passes.at("backward").get<double>();
  };
  EXPECT_EQ(figures.at("sparse_layers"), 29);  // all but head 27, of which 92% survive
  EXPECT_GT(figures.at("student_over_causal").get<double>() * seconds(figures.at("causal_seconds")), 0.0);
}

TEST(BenchAttention, TakesAModelsOwnLayers) {
  const json figures = bench("attention --seq 48 --window 4 --model model --adapters run --data train.h5 --repeat 1");
  const TinyModel m;
  EXPECT_EQ(figures.at("layers"), m.num_layers);
  EXPECT_DOUBLE_EQ(figures.at("causal_forward_flops"),
                   static_cast<double>(m.num_heads * m.head_dim) * 4.0 * 48.0 * 49.0 / 2.0);
  EXPECT_GT(figures.at("kept_share").get<double>() + figures.at("soft_share").get<double>(), 0.0);
}

TEST(BenchGemm, RatesAreFlopsOverSeconds) {
  const json figures = bench("gemm --model model --seq 64 --repeat 3 --dtype float32");
  const TinyModel m;
  double best = 0.0;
  std::vector<std::string> names;
  for (const json& row : figures.at("rows")) {
    names.push_back(row.at("name"));
    const double flops =
        2.0 * row.at("rows").get<double>() * row.at("inner").get<double>() * row.at("columns").get<double>();
    EXPECT_DOUBLE_EQ(row.at("flops"), flops);
    EXPECT_DOUBLE_EQ(row.at("flops_per_s").get<double>() * row.at("seconds").get<double>(), flops);
    EXPECT_LE(row.at("seconds_min"), row.at("seconds"));
    EXPECT_GE(row.at("seconds_max"), row.at("seconds"));
    best = std::max(best, row.at("flops_per_s").get<double>());
  }
  EXPECT_EQ(names, (std::vector<std::string>{"square", "q_proj", "gate_proj", "down_proj", "head"}));
  EXPECT_EQ(figures.at("rows").back().at("columns"), m.vocab_size);
  EXPECT_DOUBLE_EQ(figures.at("flops_per_s"), best);
}

TEST(BenchHead, FiguresAgreeWithEachOther) {
  const TinyModel m;
  for (const std::string kl : {"forward", "reverse"}) {
    const json figures = bench("head --model model --seq 96 --repeat 3 --dtype float32 --kl " + kl);
    EXPECT_DOUBLE_EQ(figures.at("flops"), 3.0 * 2.0 * static_cast<double>(96 * m.hidden_size * m.vocab_size));
    const double rate = figures.at("flops_per_s");
    EXPECT_DOUBLE_EQ(rate * figures.at("seconds").get<double>(), figures.at("flops"));
    EXPECT_DOUBLE_EQ(figures.at("share_of_gemm_rate").get<double>() * figures.at("gemm_flops_per_s").get<double>(),
                     rate);
    EXPECT_LE(figures.at("seconds_min"), figures.at("seconds"));
    EXPECT_GE(figures.at("seconds_max"), figures.at("seconds"));
    EXPECT_EQ(figures.at("dense_logit_bytes"), 96 * m.vocab_size * 4);
    EXPECT_EQ(figures.at("logit_bytes"), 2 * 96 * m.vocab_size * 4);
  }
}

}  // namespace
}  // namespace dms
