// dms eval-tasks: parse, run, print.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "data/staged_file.h"
#include "model/kv_format.h"
#include "tools/command_options.h"
#include "tools/commands.h"
#include "tools/number_text.h"
#include "tools/task_run.h"

namespace dms {

namespace {

struct Flags {
  TaskRun run;
  std::string json, kv_budget = "auto", thinking;
};

void print_summary(const std::string& task, const TaskSummary& summary) {
  std::printf("%s: pass@1 %.1f%% +- %.1f (standard error), %ld problems, %ld completions, %ld cut off\n", task.c_str(),
              100.0 * summary.pass_at_1, 100.0 * summary.standard_error, summary.items, summary.completions,
              summary.truncated);
  for (const auto& [k, share] : summary.pass_at_k) {
    if (k > 1) std::printf("  pass@%-3ld %.1f%%\n", k, 100.0 * share);
  }
  for (const auto& [k, share] : summary.maj_at_k) {
    if (k > 2) std::printf("  maj@%-4ld %.1f%%\n", k, 100.0 * share);  // two that differ share
  }
  std::printf("  a completion: %.0f new tokens, %.3g keys read, KV cache %s at most\n", summary.mean_new_tokens,
              summary.mean_keys_read, bytes_text(summary.mean_peak_kv_bytes).c_str());
}

nlohmann::ordered_json by_k(const std::vector<std::pair<int64_t, double>>& shares) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const auto& [k, share] : shares) json[std::to_string(k)] = share;
  return json;
}

nlohmann::ordered_json to_json(const TaskConditions& conditions, const TaskSummary& summary) {
  return {{"task", conditions.task},
          {"pass_at_1", summary.pass_at_1},
          {"standard_error", summary.standard_error},
          {"pass_at_k", by_k(summary.pass_at_k)},
          {"maj_at_k", by_k(summary.maj_at_k)},
          {"items", summary.items},
          {"completions", summary.completions},
          {"truncated", summary.truncated},
          {"mean_new_tokens", summary.mean_new_tokens},
          {"mean_keys_read", summary.mean_keys_read},
          {"mean_kv_read_bytes", summary.mean_keys_read * static_cast<double>(conditions.bytes_per_key)},
          {"mean_peak_kv_bytes", summary.mean_peak_kv_bytes},
          {"conditions", to_json(conditions)}};
}

void run(Flags flags) {
  flags.run.kv_budget_bytes = bytes_given("--kv-budget", flags.kv_budget, "2GiB", Auto::allowed);
  if (!flags.thinking.empty()) flags.run.chat_options.thinking = flags.thinking == "on";
  if (!flags.json.empty()) StagedFile(flags.json);
  const TaskResults file = run_task(flags.run);
  const TaskSummary summary = summarize(file.results);
  print_summary(flags.run.task, summary);
  if (!flags.json.empty()) write_file(flags.json, to_json(*file.conditions, summary).dump(2) + "\n");
}

}  // namespace

void add_eval_tasks(CLI::App& program) {
  const auto flags = std::make_shared<Flags>();
  TaskRun& task = flags->run;
  CLI::App* command =
      program.add_subcommand("eval-tasks", "Ask a benchmark's questions and grade the answers, eviction on or off.");
  command->add_option("--model", task.model, "Base model directory")->required()->type_name("DIR");
  command->add_option("--adapters", task.adapters, "Run, checkpoint or adapter directory (default: nothing is evicted)")
      ->type_name("DIR");
  command
      ->add_option("--streaming-keys", task.streaming_keys,
                   "Instead of adapters, as a baseline: every head keeps the first 4 keys and the newest, N in all")
      ->check(CLI::Range(int64_t{6}, int64_t{1} << 30))
      ->type_name("N");
  command->add_option("--task", task.task, "aime, gpqa, math or needles")->required()->type_name("NAME");
  command
      ->add_option("--data", task.data,
                   "The questions as published: JSONL, CSV or Parquet, gzip or not (needles are made here)")
      ->type_name("FILE");
  command->add_option("--out", task.out, "A line a completion; what is there already is not asked again")
      ->required()
      ->type_name("FILE.jsonl");
  command->add_option("--samples", task.samples, "Completions a problem")
      ->check(CLI::Range(int64_t{1}, int64_t{65536}))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--limit", task.limit, "Only the first N problems")->check(CLI::PositiveNumber)->type_name("N");
  command->add_option("--max-new-tokens", task.max_new_tokens, "Default: 32768; needles: 128")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->type_name("N");
  command->add_option("--temperature", task.temperature, "0 = greedy (default: the model's generation_config.json)")
      ->check(CLI::Range(0.0, 100.0))
      ->type_name("X");
  command->add_option("--top-p", task.top_p, "Default: the model's")->check(CLI::Range(0.0, 1.0))->type_name("P");
  command->add_option("--top-k", task.top_k, "0 = all (default: the model's)")
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  command->add_flag_callback(
      "--chat", [flags] { flags->run.chat = true; },
      "Questions go through the chat template "
      "(default: when the model has one)");
  command
      ->add_flag_callback(
          "--no-chat", [flags] { flags->run.chat = false; }, "Questions as they are")
      ->excludes("--chat");
  command->add_option("--template", task.chat_options.name, "auto (the model's own), jinja, chatml, llama3, qwen3, r1")
      ->capture_default_str()
      ->type_name("NAME");
  command->add_option("--date", task.chat_options.date_string, "The day that the template prints")
      ->capture_default_str()
      ->type_name("DATE");
  command->add_option("--thinking", flags->thinking, "Reason before answering, where the template can be told so")
      ->check(CLI::IsMember({"on", "off"}));
  command->add_option("--seed", task.seed, "Of the sampling")->capture_default_str()->type_name("N");
  command->add_option("--needle-tokens", task.needles.num_tokens, "needles: tokens of each prompt")
      ->check(CLI::Range(int64_t{64}, int64_t{1} << 22))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--needle-items", task.needles.count, "needles: problems")
      ->check(CLI::Range(int64_t{1}, int64_t{100000}))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--needle-task", task.needles.task, "needles: which of RULER's, niah_single_1 to niah_multiquery")
      ->capture_default_str()
      ->type_name("NAME");
  command
      ->add_option("--needle-text", task.needle_text,
                   "needles: what to hide them in, for the tasks that hide them in a text")
      ->type_name("FILE");
  command->add_option("--needle-seed", task.needles.seed, "needles: of the problems")
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--max-batch", task.max_batch, "Sequences at a time")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 16))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--kv-budget", flags->kv_budget, "Memory for keys and values, such as 2GiB")
      ->capture_default_str()
      ->type_name("BYTES");
  command->add_option("--kv-dtype", task.kv_dtype, "What keys and values are stored in")
      ->check(CLI::IsMember(kv_dtype_names()))
      ->capture_default_str();
  add_target_ratio_options(*command, task.target);
  add_compute_options(*command, task.dtype, task.device);
  command->add_option("--json", flags->json, "Write the summary to this file")->type_name("FILE");
  command->footer(
      "Example:\n  dms eval-tasks --model model --adapters run --task needles --needle-tokens 2048 --out "
      "needles.jsonl");
  command->callback([flags] { run(*flags); });
}

}  // namespace dms
