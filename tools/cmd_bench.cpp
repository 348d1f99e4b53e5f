// dms bench: parse, measure, print.
#include <CLI/CLI.hpp>

#include <memory>
#include <nlohmann/json.hpp>

#include "tools/bench_train_step.h"
#include "tools/command_options.h"
#include "tools/commands.h"

namespace dms {

namespace {

void run_train_step(const TrainStepBenchmark& benchmark, const std::string& json_file) {
  const TrainStepFigures figures = bench_train_step(benchmark);
  const nlohmann::ordered_json json{{"tokens_per_s", figures.tokens_per_s},
                                    {"step_seconds", figures.step_seconds},
                                    {"step_seconds_min", figures.step_seconds_min},
                                    {"step_seconds_max", figures.step_seconds_max},
                                    {"peak_memory_bytes", figures.peak_memory_bytes},
                                    {"mfu", figures.mfu},
                                    {"gemm_flops_per_s", figures.gemm_flops_per_s},
                                    {"dtype", figures.dtype},
                                    {"activation_checkpointing", figures.activation_checkpointing},
                                    {"threads", figures.threads}};
  print_figures(json.dump(2), json_file);
}

void add_train_step(CLI::App& bench) {
  struct Flags {
    TrainStepBenchmark benchmark;
    std::string json;
  };
  const auto flags = std::make_shared<Flags>();
  TrainStepBenchmark& benchmark = flags->benchmark;
  CLI::App* command = bench.add_subcommand("train-step", "Time one training step of one sequence of random tokens");
  command->add_option("--model", benchmark.model, "Model directory")->required()->type_name("DIR");
  command->add_option("--seq", benchmark.sequence_length, "Tokens of the sequence")
      ->required()
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 24))
      ->type_name("N");
  command->add_option("--window", benchmark.window, "Tokens for which a key stays untouched")
      ->required()
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  command->add_option("--adapters", benchmark.adapters, "Trained adapters (default: a linear adapter's initial values)")
      ->type_name("DIR");
  command
      ->add_option("--warm-up", benchmark.num_warm_up_steps, "Steps before them; 0 for the memory of a long sequence")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--steps", benchmark.num_steps, "Timed steps")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  add_dtype_option(*command, benchmark.dtype);
  std::vector<std::string> plans;
  for (const auto& [name, plan] : activation_checkpointing_names()) plans.push_back(name);
  command
      ->add_option_function<std::string>(
          "--activation-checkpointing",
          [&benchmark](const std::string& chosen) {
            for (const auto& [name, plan] : activation_checkpointing_names()) {
              if (name == chosen) benchmark.checkpointing = plan;
            }
          },
          "auto (default: the fastest that fits), full, selective or none")
      ->check(CLI::IsMember(plans));
  add_json_option(*command, flags->json);
  command->footer("Example:\n  dms bench train-step --model quickstart/model --seq 1024 --window 64 --dtype float32");
  command->callback([flags] { run_train_step(flags->benchmark, flags->json); });
}

}  // namespace

void add_bench(CLI::App& program) {
  CLI::App* command = program.add_subcommand("bench", "Measure how fast this machine does the program's main work");
  command->require_subcommand(1);
  command->footer(
      "Example:\n  dms bench train-step --model quickstart/model --seq 1024 --window 64\n\n"
      "The number of threads is that of OMP_NUM_THREADS, or one a core.");
  add_train_step(*command);
  add_bench_decode(*command);
  add_bench_attention(*command);
  add_bench_head(*command);
  add_bench_gemm(*command);
}

}  // namespace dms
