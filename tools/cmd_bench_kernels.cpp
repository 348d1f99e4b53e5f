// dms bench attention, head and gemm: parse, measure, print.
#include <CLI/CLI.hpp>

#include <memory>
#include <nlohmann/json.hpp>

#include "tools/bench_attention.h"
#include "tools/bench_gemm.h"
#include "tools/bench_head.h"
#include "tools/command_options.h"
#include "tools/commands.h"

namespace dms {

namespace {

using nlohmann::ordered_json;

void add_device(CLI::App& command, std::string& device) {
  command.add_option("--device", device, "cpu or cuda")->check(CLI::IsMember({"cpu", "cuda"}))->capture_default_str();
}

ordered_json passes_json(const AttentionFigures::Passes& passes) {
  return {{"forward", passes.forward.median},    {"backward", passes.backward.median},
          {"forward_min", passes.forward.min},   {"forward_max", passes.forward.max},
          {"backward_min", passes.backward.min}, {"backward_max", passes.backward.max}};
}

void run_attention(const AttentionBenchmark& benchmark, const std::string& json_file) {
  const AttentionFigures figures = bench_attention(benchmark);
  print_figures(ordered_json{{"causal_seconds", passes_json(figures.causal)},
                             {"two_part_seconds", passes_json(figures.two_part)},
                             {"sparse_seconds", passes_json(figures.sparse)},
                             {"dense_seconds", figures.dense ? passes_json(*figures.dense) : ordered_json(nullptr)},
                             {"student_over_causal", figures.student_over_causal},
                             {"layers", figures.num_layers},
                             {"sparse_layers", figures.num_sparse_layers},
                             {"kept_share", figures.kept_share},
                             {"soft_share", figures.soft_share},
                             {"causal_forward_flops", figures.causal_flops},
                             {"sparse_forward_flops", figures.sparse_flops},
                             {"sequence_length", benchmark.sequence_length},
                             {"window", benchmark.window},
                             {"device", benchmark.device},
                             {"dtype", figures.dtype},
                             {"threads", figures.threads}}
                    .dump(2),
                json_file);
}

void run_gemm(const GemmBenchmark& benchmark, const std::string& json_file) {
  const GemmFigures figures = bench_gemm(benchmark);
  ordered_json rows = ordered_json::array();
  double best = 0.0;
  for (const GemmFigures::Row& row : figures.rows) {
    best = std::max(best, row.flops_per_s());
    rows.push_back({{"name", row.shape.name},
                    {"rows", row.shape.rows},
                    {"inner", row.shape.inner},
                    {"columns", row.shape.columns},
                    {"flops", row.shape.flops()},
                    {"seconds", row.seconds.median},
                    {"seconds_min", row.seconds.min},
                    {"seconds_max", row.seconds.max},
                    {"flops_per_s", row.flops_per_s()}});
  }
  print_figures(ordered_json{{"rows", rows},
                             {"flops_per_s", best},
                             {"device", benchmark.device},
                             {"dtype", figures.dtype},
                             {"threads", figures.threads}}
                    .dump(2),
                json_file);
}

void run_head(const HeadBenchmark& benchmark, const std::string& json_file) {
  const HeadFigures figures = bench_head(benchmark);
  const double flops_per_s = figures.flops / figures.seconds.median;
  print_figures(ordered_json{{"seconds", figures.seconds.median},
                             {"seconds_min", figures.seconds.min},
                             {"seconds_max", figures.seconds.max},
                             {"flops", figures.flops},
                             {"flops_per_s", flops_per_s},
                             {"gemm_flops_per_s", figures.gemm_flops_per_s},
                             {"share_of_gemm_rate", flops_per_s / figures.gemm_flops_per_s},
                             {"logit_bytes", figures.logit_bytes},
                             {"dense_logit_bytes", figures.dense_logit_bytes},
                             {"sequence_length", benchmark.sequence_length},
                             {"dtype", figures.dtype},
                             {"threads", figures.threads}}
                    .dump(2),
                json_file);
}

}  // namespace

void add_bench_attention(CLI::App& bench) {
  struct Flags {
    AttentionBenchmark benchmark;
    std::string json;
  };
  const auto flags = std::make_shared<Flags>();
  AttentionBenchmark& b = flags->benchmark;
  CLI::App* command = bench.add_subcommand("attention", "Time one layer's attention: the teacher's and the student's");
  command->add_option("--seq", b.sequence_length, "Tokens of the sequence")
      ->required()
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 24))
      ->type_name("N");
  command->add_option("--window", b.window, "Tokens for which a key stays untouched")
      ->required()
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  CLI::Option* model =
      command->add_option("--model", b.model, "Take q, k and v from this model, layer by layer")->type_name("DIR");
  CLI::Option* adapters =
      command->add_option("--adapters", b.adapters, "Trained adapters of that model: whose keys survive")
          ->type_name("DIR");
  model->needs(adapters);
  adapters->needs(model);
  command->add_option("--data", b.data, "Token file for the model to read (default: random tokens)")
      ->needs(model)
      ->type_name("FILE");
  for (const auto& [name, value, help] :
       {std::tuple{"--heads", &b.num_heads, "Query heads, without a model"},
        std::tuple{"--kv-heads", &b.num_kv_heads, "KV heads, without a model"},
        std::tuple{"--head-dim", &b.head_dim, "Head dimension, without a model"},
        std::tuple{"--layers", &b.num_layers, "Layers of the built-in survivor profile"},
        std::tuple{"--repeat", &b.repeats, "Timed rounds, after one that is not"}}) {
    command->add_option(name, *value, help)
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 16))
        ->capture_default_str()
        ->type_name("N");
  }
  add_dtype_option(*command, b.dtype);
  add_device(*command, b.device);
  add_json_option(*command, flags->json);
  command->footer(
      "Seconds are those of one layer.  Examples:\n"
      "  dms bench attention --seq 8192 --window 128\n"
      "  dms bench attention --seq 2048 --window 64 --model quickstart/model --adapters quickstart/run \\\n"
      "      --data quickstart/held-out-perl.h5");
  command->callback([flags] { run_attention(flags->benchmark, flags->json); });
}

void add_bench_gemm(CLI::App& bench) {
  struct Flags {
    GemmBenchmark benchmark;
    std::string json;
  };
  const auto flags = std::make_shared<Flags>();
  GemmBenchmark& b = flags->benchmark;
  CLI::App* command = bench.add_subcommand("gemm", "Time matrix products: what other rates are measured against");
  command->add_option("--model", b.model, "Also the shapes of this model's linears")->type_name("DIR");
  for (const auto& [name, value, help] :
       {std::tuple{"--seq", &b.sequence_length, "Rows of the model's shapes"},
        std::tuple{"--repeat", &b.repeats, "Timed products of each shape, after one that is not"}}) {
    command->add_option(name, *value, help)
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
        ->capture_default_str()
        ->type_name("N");
  }
  add_dtype_option(*command, b.dtype);
  add_device(*command, b.device);
  add_json_option(*command, flags->json);
  command->footer("Example:\n  dms bench gemm --model quickstart/model --dtype float32");
  command->callback([flags] { run_gemm(flags->benchmark, flags->json); });
}

void add_bench_head(CLI::App& bench) {
  struct Flags {
    HeadBenchmark benchmark;
    std::string json;
  };
  const auto flags = std::make_shared<Flags>();
  HeadBenchmark& b = flags->benchmark;
  CLI::App* command = bench.add_subcommand("head", "Time the LM head with the distillation loss and its gradient");
  command->add_option("--model", b.model, "Model directory")->required()->type_name("DIR");
  for (const auto& [name, value, help] : {std::tuple{"--seq", &b.sequence_length, "Positions"},
                                          std::tuple{"--repeat", &b.repeats, "Timed calls, after one that is not"}}) {
    command->add_option(name, *value, help)
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
        ->capture_default_str()
        ->type_name("N");
  }
  command
      ->add_option_function<std::string>(
          "--kl",
          [&b](const std::string& name) {
            b.distillation.kl = name == "reverse" ? KlDirection::reverse : KlDirection::forward;
          },
          "forward (default) or reverse")
      ->check(CLI::IsMember({"forward", "reverse"}));
  add_dtype_option(*command, b.dtype);
  add_json_option(*command, flags->json);
  command->footer(
      "FLOPs are those of three products: both models' logits and the gradient.  Example:\n"
      "  dms bench head --model quickstart/model --dtype float32");
  command->callback([flags] { run_head(flags->benchmark, flags->json); });
}

}  // namespace dms
