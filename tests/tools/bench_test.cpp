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

json bench_train_step(const std::string& flags) {
  Sandbox sandbox(valid_files());
  ChildOptions options;
  options.directory = sandbox.path();
  options.environment = {"OMP_NUM_THREADS=1"};
  const ChildResult result =
      run_child(command_line("bench train-step --model model --json figures.json " + flags), options);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, sandbox.read("figures.json"));
  return json::parse(result.out);
}

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

}  // namespace
}  // namespace dms
