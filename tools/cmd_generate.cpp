#include <CLI/CLI.hpp>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoints/generation_config.h"
#include "checkpoints/model_dir.h"
#include "data/chat_template.h"
#include "data/staged_file.h"
#include "data/streamed_text.h"
#include "model/device_weights.h"
#include "model/generator.h"
#include "model/kv_format.h"
#include "recipes/strict_json.h"
#include "recipes/user_error.h"
#include "tools/command_options.h"
#include "tools/commands.h"
#include "tools/number_text.h"
#include "tools/stop_signal.h"
#include "trainer/hardware.h"
#include "trainer/progress_line.h"
#include "trainer/target_ratio.h"
#include "trainer/trained_adapter.h"

namespace dms {

namespace {

struct GenerateFlags {
  std::string model, adapters, prompts_file, json, dtype = "auto", device = "auto", kv_dtype = "auto",
                                                   kv_budget = "auto", exact_budget;
  std::vector<std::string> prompts;
  int64_t max_new_tokens = 256, samples = 1, max_batch = 16, top_k = -1;
  double temperature = -1.0, top_p = -1.0, min_p = 0.0;
  uint64_t seed = 0;
  bool ignore_base_hash = false;
  bool chat = false;
  std::string system;
  ChatOptions chat_options;
  TargetRatio target;
};

// A text file: a prompt a line.  *.jsonl: an object a line with the text under "prompt".
std::vector<std::string> read_prompts(const std::string& path) {
  const bool is_jsonl = path.ends_with(".jsonl");
  std::vector<std::string> prompts;
  const std::string text = read_file(path);
  size_t begin = 0;
  for (int64_t line = 1; begin < text.size(); ++line) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string content = text.substr(begin, end - begin);
    begin = end + 1;
    if (content.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (!is_jsonl) {
      prompts.push_back(content);
      continue;
    }
    const std::string where = path + ":" + std::to_string(line);
    const nlohmann::json object = parse_strict_json(content, where);
    const auto prompt = object.is_object() ? object.find("prompt") : object.end();
    if (prompt == object.end() || !prompt->is_string()) {
      throw UserError(where, "has no text under 'prompt'", {"expected one object a line, {\"prompt\": \"...\"}"});
    }
    prompts.push_back(prompt->get<std::string>());
  }
  if (prompts.empty()) throw UserError(path, "holds no prompt");
  return prompts;
}

// The tokens of each prompt: its text, or with --chat the conversation that it begins, up to where the answer stands.
std::vector<std::vector<int32_t>> encode_prompts(const GenerateFlags& flags, const std::vector<std::string>& prompts,
                                                 const Tokenizer& tokenizer) {
  std::shared_ptr<const ChatTemplate> chat;
  if (flags.chat) chat = ChatTemplate::load(flags.model, flags.chat_options);
  std::vector<std::vector<int32_t>> encoded;
  for (const std::string& prompt : prompts) {
    if (chat == nullptr) {
      encoded.push_back(tokenizer.encode(prompt, true));
      continue;
    }
    Conversation conversation;
    if (!flags.system.empty()) conversation.push_back({"system", flags.system});
    conversation.push_back({"user", prompt});
    encoded.push_back(tokenizer.encode(chat->render(conversation, true).text, false));
  }
  return encoded;
}

SamplingOptions sampling(const GenerateFlags& flags, const GenerationConfig& config) {
  SamplingOptions options;
  options.temperature = flags.temperature >= 0.0 ? flags.temperature : config.do_sample ? config.temperature : 0.0;
  options.top_p = flags.top_p >= 0.0 ? flags.top_p : config.top_p;
  options.top_k = flags.top_k >= 0 ? flags.top_k : config.top_k;
  options.min_p = flags.min_p;
  options.seed = flags.seed;
  return options;
}

struct Completion {
  std::string text;
  int64_t num_tokens = 0;
  bool stopped = false;  // by a stop token, not by the limit
};

std::string live_line(const GenerationProgress& progress, double seconds) {
  const double ratio = progress.allocated_bytes > 0
                           ? static_cast<double>(progress.dense_bytes) / static_cast<double>(progress.allocated_bytes)
                           : 1.0;
  char line[160];
  std::snprintf(line, sizeof line, "%ld running, %.1f tokens/s, KV %s (%.2fx)", progress.sequences_running,
                static_cast<double>(progress.tokens_generated) / seconds,
                bytes_text(static_cast<double>(progress.allocated_bytes)).c_str(), ratio);
  return line;
}

nlohmann::ordered_json to_json(const std::vector<std::string>& prompts, const std::vector<Completion>& completions,
                               int64_t samples, const GenerationProgress& progress, double seconds) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (size_t i = 0; i < completions.size(); ++i) {
    rows.push_back({{"prompt", prompts[i / static_cast<size_t>(samples)]},
                    {"sample", i % static_cast<size_t>(samples)},
                    {"text", completions[i].text},
                    {"tokens", completions[i].num_tokens},
                    {"stopped", completions[i].stopped}});
  }
  return {{"completions", rows},
          {"tokens_generated", progress.tokens_generated},
          {"seconds", seconds},
          {"tokens_per_s", static_cast<double>(progress.tokens_generated) / seconds},
          {"peak_kv_bytes", progress.peak_allocated_bytes}};
}

void run_generate(const GenerateFlags& flags) {
  std::vector<std::string> prompts = flags.prompts;
  if (!flags.prompts_file.empty()) {
    const auto more = read_prompts(flags.prompts_file);
    prompts.insert(prompts.end(), more.begin(), more.end());
  }
  if (prompts.empty()) throw UserError("--prompt", "is missing", {"give --prompt TEXT or --prompts FILE"});
  const int64_t budget = bytes_given("--kv-budget", flags.kv_budget, "2GiB", Auto::allowed);
  const int64_t exact_budget =
      flags.exact_budget.empty() ? -1 : bytes_given("--exact-budget", flags.exact_budget, "64MiB", Auto::refused);
  if (!flags.json.empty()) StagedFile(flags.json);

  const auto tokenizer = Tokenizer::load(flags.model);
  const GenerationConfig config = read_generation_config(flags.model);
  const at::Device device = device_named(flags.device);
  const auto source = on_device(open_weights(flags.model, dtype_named(flags.dtype, device)), device);
  const int64_t kv_heads = source->architecture().num_kv_heads;
  TrainedAdapter trained;
  std::unique_ptr<EvictionPolicy> policy = keep_everything_policy(kv_heads);
  if (!flags.adapters.empty()) {
    trained = load_trained_adapter(flags.adapters, *source, flags.ignore_base_hash ? "" : base_model_hash(flags.model));
  }
  move_threshold(flags.target, "--target-ratio", trained.file.sequence_length, flags.model, *source, trained);
  if (trained.adapter != nullptr) policy = adapter_policy(*trained.adapter, trained.eviction);

  std::vector<GenerationRequest> requests;
  int64_t longest = 0;
  for (const std::vector<int32_t>& prompt : encode_prompts(flags, prompts, *tokenizer)) {
    for (int64_t sample = 0; sample < flags.samples; ++sample) {
      requests.push_back(
          {prompt, flags.max_new_tokens, sampling(flags, config), static_cast<uint64_t>(requests.size())});
      longest = std::max(longest, static_cast<int64_t>(requests.back().prompt.size()));
    }
  }
  GeneratorOptions options;
  options.stop_tokens = config.stop_tokens;
  options.max_batch = flags.max_batch;
  if (budget >= 0) options.kv_budget_bytes = budget;
  if (exact_budget >= 0) options.exact_budget_bytes = exact_budget;
  options.stored_dtype = kv_dtype_named(flags.kv_dtype, source->dtype());
  options.max_positions = longest + flags.max_new_tokens;

  const bool streams = requests.size() == 1;
  std::vector<StreamedText> texts(requests.size(), StreamedText(tokenizer));
  std::vector<Completion> completions(requests.size());
  GenerationProgress last;
  catch_stop_signals();
  const auto begin = std::chrono::steady_clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  {
    ProgressLine progress;
    const int64_t most_tokens = static_cast<int64_t>(requests.size()) * flags.max_new_tokens;
    Generator(*source, *policy, options)
        .run(
            requests,
            [&](size_t request, int32_t token, bool is_last, const CompactCache&) {
              Completion& completion = completions[request];
              ++completion.num_tokens;
              completion.stopped =
                  std::find(config.stop_tokens.begin(), config.stop_tokens.end(), token) != config.stop_tokens.end();
              std::string text = completion.stopped ? "" : texts[request].add(token);
              if (is_last) text += texts[request].finish();
              completion.text += text;
              if (streams) std::fputs(text.c_str(), stdout), std::fflush(stdout);
            },
            [&](const GenerationProgress& now) {
              last = now;
              if (!streams) progress.update(live_line(now, seconds()), now.tokens_generated, most_tokens);
              return !stop_requested();
            });
  }
  const double total = seconds();
  if (streams) {
    std::fputs("\n", stdout);
  } else {
    for (size_t i = 0; i < completions.size(); ++i) {
      std::printf("== %s\n%s\n", prompts[i / static_cast<size_t>(flags.samples)].c_str(), completions[i].text.c_str());
    }
  }
  std::fprintf(stderr, "%ld tokens in %s, %.1f tokens/s; KV cache at most %s\n", last.tokens_generated,
               format_duration(total).c_str(), static_cast<double>(last.tokens_generated) / total,
               bytes_text(static_cast<double>(last.peak_allocated_bytes)).c_str());
  if (!flags.json.empty()) {
    write_file(flags.json, to_json(prompts, completions, flags.samples, last, total).dump(2) + "\n");
  }
  if (stop_requested()) throw Interrupted("stopped; what was generated so far is above");
}

}  // namespace

void add_generate(CLI::App& program) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command =
      program.add_subcommand("generate", "Continue prompts with a trained evictor and a cache that really shrinks.");
  command->add_option("--model", flags->model, "Base model directory")->required()->type_name("DIR");
  command
      ->add_option("--adapters", flags->adapters, "Run, checkpoint or adapter directory (default: nothing is evicted)")
      ->type_name("DIR");
  command->add_option("--prompt", flags->prompts, "Text to continue; may be given several times")->type_name("TEXT");
  command->add_option("--prompts", flags->prompts_file, "A prompt a line, or *.jsonl with {\"prompt\": ...} a line")
      ->type_name("FILE");
  command->add_flag("--chat", flags->chat, "Prompts are what a user says: put into the model's chat template");
  command->add_option("--system", flags->system, "The system message of --chat")->type_name("TEXT");
  command
      ->add_option("--template", flags->chat_options.name,
                   "Of --chat: auto (the model's own), jinja, chatml, llama3, qwen3, r1")
      ->type_name("NAME")
      ->capture_default_str();
  command->add_option("--date", flags->chat_options.date_string, "The day that the template prints")
      ->type_name("DATE")
      ->capture_default_str();
  command->add_option("--max-new-tokens", flags->max_new_tokens, "Tokens a completion at most")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--samples", flags->samples, "Completions a prompt")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--temperature", flags->temperature, "0 = greedy (default: the model's generation_config.json)")
      ->check(CLI::Range(0.0, 100.0))
      ->type_name("X");
  command->add_option("--top-k", flags->top_k, "0 = all (default: the model's)")
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  command->add_option("--top-p", flags->top_p, "Default: the model's")->check(CLI::Range(0.0, 1.0))->type_name("P");
  command->add_option("--min-p", flags->min_p, "Relative to the likeliest token")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str()
      ->type_name("P");
  command->add_option("--seed", flags->seed, "Of the sampling")->capture_default_str()->type_name("N");
  command->add_option("--max-batch", flags->max_batch, "Sequences at a time")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 16))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--kv-budget", flags->kv_budget, "Memory for keys and values, such as 2GiB: admits what fits")
      ->capture_default_str()
      ->type_name("BYTES");
  command
      ->add_option("--exact-budget", flags->exact_budget,
                   "What one sequence's keys and values never exceed: beyond the window, those go that the evictor "
                   "wants least")
      ->type_name("BYTES");
  command->add_option("--kv-dtype", flags->kv_dtype, "What keys and values are stored in")
      ->check(CLI::IsMember(kv_dtype_names()))
      ->capture_default_str();
  command->add_option("--dtype", flags->dtype, "What is computed in")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->capture_default_str();
  command->add_option("--device", flags->device, "Where it is computed")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  add_target_ratio_options(*command, flags->target);
  command->add_option("--json", flags->json, "Also write completions and figures to this file")->type_name("FILE");
  command->add_flag("--ignore-base-hash", flags->ignore_base_hash, "Accept adapters trained on other weights");
  command->footer(
      "Example:\n  dms generate --model model --adapters run --prompt 'The capital of France is' --max-new-tokens 40");
  command->callback([flags] { run_generate(*flags); });
}

}  // namespace dms
