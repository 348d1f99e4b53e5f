#include <CLI/CLI.hpp>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "checkpoints/generation_config.h"
#include "checkpoints/model_dir.h"
#include "data/answer_grading.h"
#include "data/benchmark.h"
#include "data/staged_file.h"
#include "data/tokenizer.h"
#include "model/device_weights.h"
#include "model/generator.h"
#include "recipes/option_value.h"
#include "recipes/user_error.h"
#include "tools/commands.h"
#include "tools/number_text.h"
#include "tools/stop_signal.h"
#include "trainer/append_file.h"
#include "trainer/hardware.h"
#include "trainer/progress_line.h"
#include "trainer/task_results.h"
#include "trainer/trained_adapter.h"

namespace dms {

namespace {

struct Flags {
  std::string model, adapters, task, data, out, json, dtype = "auto", device = "auto", kv_budget = "auto";
  int64_t samples = 1, max_new_tokens = 0, max_batch = 16, limit = 0;
  double temperature = -1.0, top_p = -1.0;
  uint64_t seed = 0;
  NeedleOptions needles;
};

// What a task is usually given room for.
int64_t usual_new_tokens(BenchmarkKind kind) { return kind == BenchmarkKind::needles ? 128 : 32768; }

std::vector<BenchmarkItem> items_of(const Flags& flags, BenchmarkKind kind, const Tokenizer& tokenizer) {
  std::vector<BenchmarkItem> items;
  if (kind == BenchmarkKind::needles) {
    items = make_needle_items(flags.needles, [&](std::string_view text) {
      return static_cast<int64_t>(tokenizer.encode(text, true).size());
    });
  } else {
    if (flags.data.empty()) throw UserError("--data", "is missing", {"the questions of '" + flags.task + "'"});
    items = read_benchmark(kind, flags.data);
  }
  if (flags.limit > 0 && flags.limit < static_cast<int64_t>(items.size())) {
    items.resize(static_cast<size_t>(flags.limit));
  }
  return items;
}

void print_summary(const std::string& task, const TaskSummary& summary) {
  std::printf("%s: pass@1 %.1f%% +- %.1f (standard error), %ld problems, %ld completions, %ld cut off\n", task.c_str(),
              100.0 * summary.pass_at_1, 100.0 * summary.standard_error, summary.items, summary.completions,
              summary.truncated);
  for (const auto& [k, share] : summary.pass_at_k) {
    if (k > 1) std::printf("  pass@%-3ld %.1f%%\n", k, 100.0 * share);
  }
  std::printf("  a completion: %.0f new tokens, %.3g keys read, KV cache %s at most\n", summary.mean_new_tokens,
              summary.mean_keys_read, bytes_text(summary.mean_peak_kv_bytes).c_str());
}

nlohmann::ordered_json to_json(const Flags& flags, const TaskSummary& summary) {
  nlohmann::ordered_json at_k = nlohmann::ordered_json::object();
  for (const auto& [k, share] : summary.pass_at_k) at_k[std::to_string(k)] = share;
  return {{"task", flags.task},
          {"pass_at_1", summary.pass_at_1},
          {"standard_error", summary.standard_error},
          {"pass_at_k", at_k},
          {"items", summary.items},
          {"completions", summary.completions},
          {"truncated", summary.truncated},
          {"mean_new_tokens", summary.mean_new_tokens},
          {"mean_keys_read", summary.mean_keys_read},
          {"mean_peak_kv_bytes", summary.mean_peak_kv_bytes}};
}

void run(const Flags& flags) {
  const BenchmarkKind kind = benchmark_named(flags.task);
  const std::optional<int64_t> budget = parse_bytes_or_auto(flags.kv_budget);
  if (!budget) throw UserError("--kv-budget", "is '" + flags.kv_budget + "'", {"expected bytes, such as 2GiB"});
  const auto tokenizer = Tokenizer::load(flags.model);
  const std::vector<BenchmarkItem> items = items_of(flags, kind, *tokenizer);
  std::vector<TaskResult> results = read_results(flags.out);
  std::set<std::pair<std::string, int64_t>> finished;
  for (const TaskResult& result : results) finished.insert({result.item, result.sample});

  const GenerationConfig config = read_generation_config(flags.model);
  SamplingOptions sampling;
  sampling.temperature = flags.temperature >= 0.0 ? flags.temperature : config.do_sample ? config.temperature : 0.0;
  sampling.top_p = flags.top_p >= 0.0 ? flags.top_p : config.top_p;
  sampling.top_k = config.top_k;
  sampling.seed = flags.seed;
  if (flags.samples > 1 && sampling.temperature <= 0.0) {
    throw UserError("--samples", "are all the same at temperature 0", {"give --temperature, such as 0.6"});
  }
  const int64_t new_tokens = flags.max_new_tokens > 0 ? flags.max_new_tokens : usual_new_tokens(kind);
  std::vector<GenerationRequest> requests;
  std::vector<std::pair<size_t, int64_t>> asked;  // item, sample
  int64_t longest = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const std::vector<int32_t> prompt = tokenizer->encode(items[i].prompt, true);
    longest = std::max(longest, static_cast<int64_t>(prompt.size()));
    for (int64_t sample = 0; sample < flags.samples; ++sample) {
      if (finished.contains({items[i].id, sample})) continue;
      requests.push_back(
          {prompt, new_tokens, sampling, static_cast<uint64_t>(i) * 65536 + static_cast<uint64_t>(sample)});
      asked.emplace_back(i, sample);
    }
  }
  if (!finished.empty()) {
    std::fprintf(stderr, "%s: %zu completions are there already, %zu to go\n", flags.out.c_str(), finished.size(),
                 requests.size());
  }

  if (!requests.empty()) {
    const at::Device device = device_named(flags.device);
    const auto source = on_device(open_weights(flags.model, dtype_named(flags.dtype, device)), device);
    TrainedAdapter trained;
    std::unique_ptr<EvictionPolicy> policy = keep_everything_policy(source->architecture().num_kv_heads);
    if (!flags.adapters.empty()) {
      trained = load_trained_adapter(flags.adapters, *source, base_model_hash(flags.model));
      policy = adapter_policy(*trained.adapter, trained.eviction);
    }
    GeneratorOptions options;
    options.stop_tokens = config.stop_tokens;
    options.max_batch = flags.max_batch;
    if (*budget >= 0) options.kv_budget_bytes = *budget;
    options.stored_dtype = source->dtype();
    options.max_positions = longest + new_tokens;

    AppendFile log(flags.out, AppendFile::Mode::extend);
    std::vector<std::vector<int32_t>> tokens(requests.size());
    std::vector<int64_t> peak_bytes(requests.size(), 0);
    catch_stop_signals();
    ProgressLine progress;
    const auto total = static_cast<int64_t>(requests.size());
    Generator(*source, *policy, options)
        .run(
            requests,
            [&](size_t request, int32_t token, bool is_last, const CompactCache& cache) {
              tokens[request].push_back(token);
              peak_bytes[request] = std::max(peak_bytes[request], cache.allocated_bytes());
              if (!is_last) return;
              const auto& [item, sample] = asked[request];
              TaskResult result;
              result.item = items[item].id;
              result.sample = sample;
              result.truncated =
                  std::find(config.stop_tokens.begin(), config.stop_tokens.end(), token) == config.stop_tokens.end();
              result.prompt_tokens = static_cast<int64_t>(requests[request].prompt.size());
              result.new_tokens = static_cast<int64_t>(tokens[request].size());
              result.keys_read = cache.num_keys_read();
              result.peak_kv_bytes = peak_bytes[request];
              result.text = tokenizer->decode(tokens[request], true);
              const bool thinks = items[item].prompt.ends_with("<think>") || items[item].prompt.ends_with("<think>\n");
              const auto answer = text_after_reasoning(result.text, thinks);
              result.score = answer ? grade(kind, *answer, items[item]) : 0.0;
              log.append(to_line(result));
              results.push_back(std::move(result));
              tokens[request] = {};
            },
            [&](const GenerationProgress& now) {
              progress.update(std::to_string(now.sequences_finished) + "/" + std::to_string(total) + " completions, " +
                                  std::to_string(now.sequences_running) + " running, KV " +
                                  bytes_text(static_cast<double>(now.allocated_bytes)),
                              now.sequences_finished, total);
              return !stop_requested();
            });
    if (stop_requested()) throw Interrupted("stopped; the same command goes on from " + flags.out);
  }
  const TaskSummary summary = summarize(results);
  print_summary(flags.task, summary);
  if (!flags.json.empty()) write_file(flags.json, to_json(flags, summary).dump(2) + "\n");
}

}  // namespace

void add_eval_tasks(CLI::App& program) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command =
      program.add_subcommand("eval-tasks", "Ask a benchmark's questions and grade the answers, eviction on or off.");
  command->add_option("--model", flags->model, "Base model directory")->required()->type_name("DIR");
  command
      ->add_option("--adapters", flags->adapters, "Run, checkpoint or adapter directory (default: nothing is evicted)")
      ->type_name("DIR");
  command->add_option("--task", flags->task, "aime, gpqa, math or needles")->required()->type_name("NAME");
  command->add_option("--data", flags->data, "The questions: *.jsonl or *.csv (needles are made here)")
      ->type_name("FILE");
  command->add_option("--out", flags->out, "A line a completion; what is there already is not asked again")
      ->required()
      ->type_name("FILE.jsonl");
  command->add_option("--samples", flags->samples, "Completions a problem")
      ->check(CLI::Range(int64_t{1}, int64_t{65536}))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--limit", flags->limit, "Only the first N problems")->check(CLI::PositiveNumber)->type_name("N");
  command->add_option("--max-new-tokens", flags->max_new_tokens, "Default: 32768; needles: 128")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->type_name("N");
  command->add_option("--temperature", flags->temperature, "0 = greedy (default: the model's generation_config.json)")
      ->check(CLI::Range(0.0, 100.0))
      ->type_name("X");
  command->add_option("--top-p", flags->top_p, "Default: the model's")->check(CLI::Range(0.0, 1.0))->type_name("P");
  command->add_option("--seed", flags->seed, "Of the sampling")->capture_default_str()->type_name("N");
  command->add_option("--needle-tokens", flags->needles.num_tokens, "needles: tokens of each prompt")
      ->check(CLI::Range(int64_t{64}, int64_t{1} << 22))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--needle-items", flags->needles.count, "needles: problems")
      ->check(CLI::Range(int64_t{1}, int64_t{100000}))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--needles", flags->needles.num_needles, "needles: numbers hidden in each prompt")
      ->check(CLI::Range(int64_t{1}, int64_t{64}))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--needle-seed", flags->needles.seed, "needles: of the problems")
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--max-batch", flags->max_batch, "Sequences at a time")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 16))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--kv-budget", flags->kv_budget, "Memory for keys and values, such as 2GiB")
      ->capture_default_str()
      ->type_name("BYTES");
  command->add_option("--dtype", flags->dtype, "auto, float32 or bfloat16")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->capture_default_str();
  command->add_option("--device", flags->device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command->add_option("--json", flags->json, "Write the summary to this file")->type_name("FILE");
  command->footer(
      "Example:\n  dms eval-tasks --model model --adapters run --task needles --needle-tokens 2048 --out "
      "needles.jsonl");
  command->callback([flags] { run(*flags); });
}

}  // namespace dms
