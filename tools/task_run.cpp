#include "tools/task_run.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "checkpoints/generation_config.h"
#include "checkpoints/model_dir.h"
#include "data/answer_grading.h"
#include "data/sha256.h"
#include "data/staged_file.h"
#include "data/tokenizer.h"
#include "model/device_weights.h"
#include "model/generator.h"
#include "model/kv_format.h"
#include "recipes/user_error.h"
#include "tools/number_text.h"
#include "tools/stop_signal.h"
#include "trainer/append_file.h"
#include "trainer/hardware.h"
#include "trainer/progress_line.h"
#include "trainer/trained_adapter.h"

namespace dms {

namespace {

// What the harnesses give a task room for.
int64_t usual_new_tokens(BenchmarkKind kind) { return kind == BenchmarkKind::needles ? 128 : 32768; }

std::vector<BenchmarkItem> items_of(const TaskRun& run, BenchmarkKind kind, const Tokenizer& tokenizer) {
  std::vector<BenchmarkItem> items;
  if (kind == BenchmarkKind::needles) {
    NeedleOptions options = run.needles;
    if (!run.needle_text.empty()) options.haystack_text = read_file(run.needle_text);
    items = make_needle_items(
        options, [&](std::string_view text) { return static_cast<int64_t>(tokenizer.encode(text, true).size()); });
  } else {
    if (run.data.empty()) throw UserError("--data", "is missing", {"the questions of '" + run.task + "'"});
    items = read_benchmark(kind, run.data);
  }
  return items;
}

std::string questions_hash(const std::vector<BenchmarkItem>& items) {
  Sha256 hash;
  for (const BenchmarkItem& item : items) {
    hash.update(item.id + '\0' + item.prompt + '\0' + item.answer_prefix + '\0');
    for (const std::string& answer : item.answers) hash.update(answer + '\0');
  }
  return hash.hex();
}

// A question as the model reads it.
std::string prompt_text(const BenchmarkItem& item, const ChatTemplate* chat) {
  if (chat == nullptr) return item.prompt + (item.answer_prefix.empty() ? "" : " ") + item.answer_prefix;
  return chat->render({{"user", item.prompt}}, true).text + item.answer_prefix;
}

struct Evictor {
  TrainedAdapter trained;
  std::unique_ptr<EvictionPolicy> policy;
};

Evictor evictor_of(const TaskRun& run, WeightSource& source) {
  Evictor evictor;
  const int64_t kv_heads = source.architecture().num_kv_heads;
  if (run.streaming_keys > 0) {
    evictor.policy = sinks_and_window_policy(kv_heads, kNumSinks, run.streaming_keys);
  } else if (!run.adapters.empty()) {
    evictor.trained = load_trained_adapter(run.adapters, source, base_model_hash(run.model));
    move_threshold(run.target, "--target-ratio", evictor.trained.file.sequence_length, run.model, source,
                   evictor.trained);
    evictor.policy = adapter_policy(*evictor.trained.adapter, evictor.trained.eviction);
  } else {
    evictor.policy = keep_everything_policy(kv_heads);
  }
  return evictor;
}

class Asking {
 public:
  explicit Asking(const TaskRun& run)
      : run_(run), kind_(benchmark_named(run.task)), tokenizer_(Tokenizer::load(run.model)) {
    if (run.streaming_keys > 0 && !run.adapters.empty()) {
      throw UserError("--streaming-keys", "is a baseline of its own: it goes without --adapters");
    }
    if (run.target.given() && run.adapters.empty()) {
      throw UserError("--target-ratio", "moves an evictor's threshold", {"give --adapters"});
    }
    items_ = items_of(run, kind_, *tokenizer_);
    // Of all questions, asked or not: a larger limit goes on with the same file.
    questions_sha256_ = questions_hash(items_);
    if (run.limit > 0 && run.limit < std::ssize(items_)) items_.resize(static_cast<size_t>(run.limit));
    if (run.chat.value_or(has_chat_template(run.model))) chat_ = ChatTemplate::load(run.model, run.chat_options);
    const GenerationConfig config = read_generation_config(run.model);
    stop_tokens_ = config.stop_tokens;
    sampling_.temperature = run.temperature >= 0.0 ? run.temperature : config.do_sample ? config.temperature : 0.0;
    sampling_.top_p = run.top_p >= 0.0 ? run.top_p : config.top_p;
    sampling_.top_k = run.top_k >= 0 ? run.top_k : config.top_k;
    sampling_.seed = run.seed;
    if (run.samples > 1 && sampling_.temperature <= 0.0) {
      throw UserError("--samples", "are all the same at temperature 0", {"give --temperature, such as 0.6"});
    }
    max_new_tokens_ = run.max_new_tokens > 0 ? run.max_new_tokens : usual_new_tokens(kind_);
  }

  TaskResults ask() {
    const at::Device device = device_named(run_.device);
    const auto source = on_device(open_weights(run_.model, dtype_named(run_.dtype, device)), device);
    const Evictor evictor = evictor_of(run_, *source);
    const TaskConditions conditions = conditions_of(*source, evictor);
    TaskResults file = read_results_to_continue(run_.out, conditions);
    make_requests(file.results);
    if (requests_.empty()) return file;

    GeneratorOptions options;
    options.stop_tokens = stop_tokens_;
    options.max_batch = run_.max_batch;
    if (run_.kv_budget_bytes >= 0) options.kv_budget_bytes = run_.kv_budget_bytes;
    options.stored_dtype = kv_dtype_named(run_.kv_dtype, source->dtype());
    for (const GenerationRequest& request : requests_) {
      options.max_positions = std::max(options.max_positions, std::ssize(request.prompt) + max_new_tokens_);
    }
    AppendFile log(run_.out, AppendFile::Mode::extend);
    if (!file.conditions.has_value()) log.append(to_line(conditions));
    file.conditions = conditions;
    generate(*source, *evictor.policy, options, [&](TaskResult result) {
      log.append(to_line(result));
      file.results.push_back(std::move(result));
    });
    if (stop_requested()) throw Interrupted("stopped; the same command goes on from " + run_.out);
    return file;
  }

 private:
  TaskConditions conditions_of(const WeightSource& source, const Evictor& evictor) const {
    TaskConditions conditions;
    conditions.task = run_.task;
    conditions.questions_sha256 = questions_sha256_;
    conditions.model = run_.model;
    conditions.model_sha256 = base_model_hash(run_.model);
    conditions.evictor = run_.streaming_keys > 0 ? "sinks + window" : run_.adapters.empty() ? "none" : "trained";
    conditions.adapters = run_.adapters;
    if (!run_.adapters.empty()) conditions.adapters_sha256 = evictor_hash(evictor.trained);
    conditions.streaming_keys = run_.streaming_keys;
    if (chat_ != nullptr) {
      conditions.chat_template = chat_->name() + (chat_->sha256().empty() ? "" : " " + chat_->sha256());
    }
    if (chat_ != nullptr && run_.chat_options.thinking.has_value()) {
      conditions.thinking = *run_.chat_options.thinking ? "on" : "off";
    }
    conditions.max_new_tokens = max_new_tokens_;
    conditions.temperature = sampling_.temperature;
    conditions.top_p = sampling_.top_p;
    conditions.top_k = sampling_.top_k;
    conditions.seed = sampling_.seed;
    conditions.dtype = source.dtype() == at::kBFloat16 ? "bfloat16" : "float32";
    const at::ScalarType stored = kv_dtype_named(run_.kv_dtype, source.dtype());
    if (stored != source.dtype()) conditions.dtype += ", keys and values " + run_.kv_dtype;
    conditions.bytes_per_key = 2 * stored_row_bytes(source.architecture().head_dim, stored);
    return conditions;
  }

  // Of all that decides what is evicted.
  static std::string evictor_hash(const TrainedAdapter& trained) {
    Sha256 hash;
    const EvictionOptions& rule = trained.eviction;
    for (double value : {static_cast<double>(rule.window), static_cast<double>(rule.decision_shift), rule.alpha_scale,
                         rule.alpha_offset}) {
      hash.update({reinterpret_cast<const char*>(&value), sizeof value});
    }
    for (const auto& [name, tensor] : trained.file.tensors) {
      const at::Tensor bytes = tensor.contiguous();
      hash.update(name);
      hash.update({static_cast<const char*>(bytes.data_ptr()), bytes.nbytes()});
    }
    return hash.hex();
  }

  void make_requests(const std::vector<TaskResult>& answered) {
    std::set<std::pair<std::string, int64_t>> finished;
    for (const TaskResult& result : answered) finished.insert({result.item, result.sample});
    for (size_t i = 0; i < items_.size(); ++i) {
      const std::string text = prompt_text(items_[i], chat_.get());
      const std::vector<int32_t> prompt = tokenizer_->encode(text, chat_ == nullptr);
      const bool thinks = text.ends_with("<think>") || text.ends_with("<think>\n");
      for (int64_t sample = 0; sample < run_.samples; ++sample) {
        if (finished.contains({items_[i].id, sample})) continue;
        requests_.push_back({prompt, max_new_tokens_, sampling_, i * 65536 + static_cast<uint64_t>(sample)});
        asked_.push_back({i, sample, thinks});
      }
    }
    if (!finished.empty()) {
      std::fprintf(stderr, "%s: %zu completions are there already, %zu to go\n", run_.out.c_str(), finished.size(),
                   requests_.size());
    }
  }

  void generate(WeightSource& source, const EvictionPolicy& policy, const GeneratorOptions& options,
                const std::function<void(TaskResult)>& on_result) {
    std::vector<std::vector<int32_t>> tokens(requests_.size());
    std::vector<int64_t> peak_bytes(requests_.size(), 0);
    catch_stop_signals();
    ProgressLine progress;
    const auto total = std::ssize(requests_);
    const auto on_token = [&](size_t request, int32_t token, bool is_last, const CompactCache& cache) {
      tokens[request].push_back(token);
      peak_bytes[request] = std::max(peak_bytes[request], cache.allocated_bytes());
      if (!is_last) return;
      TaskResult result = graded(request, tokens[request]);
      result.keys_read = cache.num_keys_read();
      result.peak_kv_bytes = peak_bytes[request];
      tokens[request] = {};
      on_result(std::move(result));
    };
    const auto on_progress = [&](const GenerationProgress& now) {
      progress.update(std::to_string(now.sequences_finished) + "/" + std::to_string(total) + " completions, " +
                          std::to_string(now.sequences_running) + " running, KV " +
                          bytes_text(static_cast<double>(now.allocated_bytes)),
                      now.sequences_finished, total);
      return !stop_requested();
    };
    Generator(source, policy, options).run(requests_, on_token, on_progress);
  }

  TaskResult graded(size_t request, const std::vector<int32_t>& tokens) const {
    const Asked& asked = asked_[request];
    const BenchmarkItem& item = items_[asked.item];
    TaskResult result;
    result.item = item.id;
    result.sample = asked.sample;
    result.truncated = std::find(stop_tokens_.begin(), stop_tokens_.end(), tokens.back()) == stop_tokens_.end();
    result.prompt_tokens = std::ssize(requests_[request].prompt);
    result.new_tokens = std::ssize(tokens);
    result.text = tokenizer_->decode(tokens, true);
    if (const auto answer = text_after_reasoning(result.text, asked.thinks)) {
      result.score = grade(kind_, *answer, item);
      result.answer = given_answer(kind_, *answer);
    }
    return result;
  }

  struct Asked {
    size_t item = 0;
    int64_t sample = 0;
    bool thinks = false;  // the prompt opens the reasoning
  };

  const TaskRun& run_;
  const BenchmarkKind kind_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<BenchmarkItem> items_;
  std::string questions_sha256_;
  std::shared_ptr<const ChatTemplate> chat_;
  std::vector<int32_t> stop_tokens_;
  SamplingOptions sampling_;
  int64_t max_new_tokens_ = 0;
  std::vector<GenerationRequest> requests_;
  std::vector<Asked> asked_;
};

}  // namespace

TaskResults run_task(const TaskRun& run) { return Asking(run).ask(); }

}  // namespace dms
