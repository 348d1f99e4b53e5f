#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "data/staged_file.h"
#include "model/kv_format.h"
#include "recipes/user_error.h"
#include "tools/bench_decode.h"
#include "tools/command_options.h"
#include "tools/commands.h"
#include "tools/decode_charts.h"
#include "tools/number_text.h"

namespace dms {

namespace {

struct Flags {
  DecodeBenchmark benchmark;
  std::string kv_budget, json, plot;
};

nlohmann::ordered_json to_json(const DecodeBenchmark& benchmark, const DecodeFigures& figures) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const DecodeRow& row : figures.rows) {
    rows.push_back({{"engine", row.engine},
                    {"evict", row.evict},
                    {"batch", benchmark.batches.empty() ? 0 : row.sequences},
                    {"context", row.context},
                    {"kv_budget_bytes", benchmark.kv_budget_bytes},
                    {"sequences", row.sequences},
                    {"tokens_per_s", row.tokens_per_s()},
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
          {"kv_dtype", figures.kv_dtype},
          {"threads", figures.threads}};
}

// The row that a row's speed is given relative to: ours without eviction at the same place.
const DecodeRow& baseline_of(const DecodeRow& row, const DecodeBenchmark& benchmark, const DecodeFigures& figures) {
  return *std::find_if(figures.rows.begin(), figures.rows.end(), [&](const DecodeRow& other) {
    return other.engine == "dms" && !other.evict && other.context == row.context &&
           (benchmark.batches.empty() || other.sequences == row.sequences);
  });
}

void print(const DecodeBenchmark& benchmark, const DecodeFigures& figures) {
  std::printf("%-14s%9s%11s%11s%10s%12s%13s%10s%17s\n", "engine", "context", "sequences", "tokens/s", "relative",
              "KV cache", "KV read/s", "prefill", "prefill KV peak");
  for (const DecodeRow& row : figures.rows) {
    const std::string engine = row.engine != "dms" ? row.engine : row.evict ? "dms, evicting" : "dms";
    std::printf("%-14s%9ld%11ld%11.2f%9.2fx%12s%13s%10s%17s\n", engine.c_str(), row.context, row.sequences,
                row.tokens_per_s(), row.tokens_per_s() / baseline_of(row, benchmark, figures).tokens_per_s(),
                bytes_text(static_cast<double>(row.kv_bytes)).c_str(), bytes_text(row.kv_read_bytes_per_s).c_str(),
                duration_text(row.prefill_seconds).c_str(),
                bytes_text(static_cast<double>(row.peak_prefill_kv_bytes)).c_str());
  }
  std::printf("memory reads %s/s; computed in %s, keys and values in %s, %ld threads\n",
              bytes_text(figures.read_bandwidth_bytes_per_s).c_str(), figures.dtype.c_str(), figures.kv_dtype.c_str(),
              figures.threads);
}

std::vector<DecodePoint> points(const DecodeFigures& figures, int64_t budget_bytes) {
  std::vector<DecodePoint> points;
  for (const DecodeRow& row : figures.rows) {
    points.push_back({row.engine == "dms", row.evict, row.context, row.sequences, row.tokens_per_s(),
                      static_cast<double>(row.kv_bytes), static_cast<double>(budget_bytes)});
  }
  return points;
}

void run(Flags flags) {
  DecodeBenchmark& benchmark = flags.benchmark;
  if (!flags.kv_budget.empty()) {
    benchmark.kv_budget_bytes = bytes_given("--kv-budget", flags.kv_budget, "2GiB", Auto::refused);
  }
  if (benchmark.batches.empty() == (benchmark.kv_budget_bytes == 0)) {
    throw UserError("--batch", "and --kv-budget: exactly one of the two says how many sequences are decoded");
  }
  for (std::vector<int64_t>* list : {&benchmark.contexts, &benchmark.batches}) {
    std::sort(list->begin(), list->end());
    list->erase(std::unique(list->begin(), list->end()), list->end());
  }
  for (const std::string& file : {flags.json, flags.plot}) {
    if (!file.empty()) StagedFile{file};
  }
  const DecodeFigures figures =
      bench_decode(benchmark, [](const std::string& part) { std::fprintf(stderr, "%s ...\n", part.c_str()); });
  print(benchmark, figures);
  if (!flags.json.empty()) write_file(flags.json, to_json(benchmark, figures).dump(2) + "\n");
  if (!flags.plot.empty()) write_file(flags.plot, decode_page(points(figures, benchmark.kv_budget_bytes)));
}

}  // namespace

void add_bench_decode(CLI::App& bench) {
  const auto flags = std::make_shared<Flags>();
  DecodeBenchmark& benchmark = flags->benchmark;
  CLI::App* command = bench.add_subcommand("decode", "Time decoding after a long context, eviction off and on");
  command->add_option("--model", benchmark.model, "Model directory")->required()->type_name("DIR");
  command
      ->add_option("--adapters", benchmark.adapters,
                   "Run, checkpoint or adapter directory (default: only eviction off)")
      ->type_name("DIR");
  command->add_option("--context", benchmark.contexts, "Tokens of each prompt; or a list, 2048,8192")
      ->required()
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->type_name("N,...");
  command->add_option("--batch", benchmark.batches, "Sequences decoded together; or a list, 1,4,16")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 16))
      ->type_name("N,...");
  command->add_option("--kv-budget", flags->kv_budget, "Or: as many as fit into this memory, such as 1GiB")
      ->type_name("BYTES");
  command->add_option("--data", benchmark.data, "Token file that prompts are taken from (default: random tokens)")
      ->type_name("FILE");
  command
      ->add_option("--distinct", benchmark.distinct, "Prompts read; their caches are copied for the rest of the batch")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  add_target_ratio_options(*command, benchmark.target);
  command->add_option("--steps", benchmark.steps, "Timed steps, after two that are not")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--dtype", benchmark.dtype, "What is computed in")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->capture_default_str();
  command->add_option("--kv-dtype", benchmark.kv_dtype, "What keys and values are stored in")
      ->check(CLI::IsMember(kv_dtype_names()))
      ->capture_default_str();
  command
      ->add_option("--transformers", benchmark.transformers_python,
                   "Also time transformers' DynamicCache, in a Python that has it, such as .venv/bin/python3")
      ->type_name("PYTHON");
  command->add_option("--plot", flags->plot, "Also draw the figures, as a page of its own")->type_name("FILE.html");
  add_json_option(*command, flags->json);
  command->footer(
      "Example:\n  dms bench decode --model quickstart/model --adapters quickstart/run --context 2048,8192 "
      "--batch 1,16\n    --distinct 2 --data quickstart/held-out-perl.h5 --transformers .venv/bin/python3 --plot "
      "speed.html");
  command->callback([flags] { run(*flags); });
}

}  // namespace dms
