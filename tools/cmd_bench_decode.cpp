#include <CLI/CLI.hpp>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "data/staged_file.h"
#include "recipes/option_value.h"
#include "recipes/user_error.h"
#include "tools/bench_decode.h"
#include "tools/commands.h"
#include "tools/number_text.h"

namespace dms {

namespace {

struct Flags {
  DecodeBenchmark benchmark;
  std::string kv_budget, json;
};

nlohmann::ordered_json to_json(const DecodeBenchmark& benchmark, const DecodeFigures& figures) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const DecodeRow& row : figures.rows) {
    rows.push_back({{"engine", "dms"},
                    {"evict", row.evict},
                    {"batch", benchmark.batch},
                    {"context", benchmark.context},
                    {"kv_budget_bytes", benchmark.kv_budget_bytes},
                    {"sequences", row.sequences},
                    {"tokens_per_s", row.tokens_per_s},
                    {"step_seconds", row.step_seconds},
                    {"step_seconds_min", row.step_seconds_min},
                    {"step_seconds_max", row.step_seconds_max},
                    {"kv_bytes", row.kv_bytes},
                    {"kv_read_bytes_per_s", row.kv_read_bytes_per_s},
                    {"prefill_seconds", row.prefill_seconds},
                    {"peak_prefill_kv_bytes", row.peak_prefill_kv_bytes}});
  }
  return {{"rows", rows},
          {"read_bandwidth_bytes_per_s", figures.read_bandwidth_bytes_per_s},
          {"dtype", figures.dtype},
          {"threads", figures.threads}};
}

void run(Flags flags) {
  if (!flags.kv_budget.empty()) {
    const std::optional<int64_t> budget = parse_bytes_or_auto(flags.kv_budget);
    if (!budget || *budget < 0) {
      throw UserError("--kv-budget", "is '" + flags.kv_budget + "'", {"expected bytes, such as 2GiB"});
    }
    flags.benchmark.kv_budget_bytes = *budget;
  }
  if ((flags.benchmark.batch > 0) == (flags.benchmark.kv_budget_bytes > 0)) {
    throw UserError("--batch", "and --kv-budget: exactly one of the two says how many sequences are decoded");
  }
  if (!flags.json.empty()) StagedFile(flags.json);
  const DecodeFigures figures =
      bench_decode(flags.benchmark, [](const std::string& part) { std::fprintf(stderr, "%s ...\n", part.c_str()); });
  std::printf("%-9s%11s%11s%13s%13s%14s%16s\n", "eviction", "sequences", "tokens/s", "KV cache", "KV read/s", "prefill",
              "prefill KV peak");
  for (const DecodeRow& row : figures.rows) {
    std::printf("%-9s%11ld%11.2f%13s%13s%14s%16s\n", row.evict ? "on" : "off", row.sequences, row.tokens_per_s,
                bytes_text(static_cast<double>(row.kv_bytes)).c_str(), bytes_text(row.kv_read_bytes_per_s).c_str(),
                duration_text(row.prefill_seconds).c_str(),
                bytes_text(static_cast<double>(row.peak_prefill_kv_bytes)).c_str());
  }
  std::printf("eviction on decodes %.2fx the tokens per second; memory reads %s/s; %s, %ld threads\n",
              figures.rows[1].tokens_per_s / figures.rows[0].tokens_per_s,
              bytes_text(figures.read_bandwidth_bytes_per_s).c_str(), figures.dtype.c_str(), figures.threads);
  if (!flags.json.empty()) write_file(flags.json, to_json(flags.benchmark, figures).dump(2) + "\n");
}

}  // namespace

void add_bench_decode(CLI::App& bench) {
  const auto flags = std::make_shared<Flags>();
  DecodeBenchmark& benchmark = flags->benchmark;
  CLI::App* command = bench.add_subcommand("decode", "Time decoding after a long context, eviction off and on");
  command->add_option("--model", benchmark.model, "Model directory")->required()->type_name("DIR");
  command->add_option("--adapters", benchmark.adapters, "Run, checkpoint or adapter directory")
      ->required()
      ->type_name("DIR");
  command->add_option("--context", benchmark.context, "Tokens of each prompt")
      ->required()
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->type_name("N");
  command->add_option("--batch", benchmark.batch, "Sequences decoded together")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 16))
      ->type_name("N");
  command->add_option("--kv-budget", flags->kv_budget, "Or: as many as fit into this memory, such as 1GiB")
      ->type_name("BYTES");
  command->add_option("--data", benchmark.data, "Token file that prompts are taken from (default: random tokens)")
      ->type_name("FILE");
  command
      ->add_option("--distinct", benchmark.distinct, "Prompts read; their caches are copied for the rest of the batch")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  command->add_option("--steps", benchmark.steps, "Timed steps, after two that are not")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--dtype", benchmark.dtype, "Of weights, keys and values")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->capture_default_str();
  command->add_option("--json", flags->json, "Also write the figures to this file")->type_name("FILE");
  command->footer(
      "Example:\n  dms bench decode --model quickstart/model --adapters quickstart/run --context 8192 --batch 16 "
      "--distinct 2\n    --data quickstart/held-out-perl.h5");
  command->callback([flags] { run(*flags); });
}

}  // namespace dms
