#include "model/generator.h"

#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <deque>
#include <string>

#include "model/block.h"
#include "model/decoder.h"
#include "model/linear.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

// Prefill chunk: the part of a prompt that exists uncompressed.
constexpr int64_t kChunkTokens = 256;

struct Sequence {
  size_t request = 0;
  std::vector<int32_t> tokens;  // prompt and what was generated
  int64_t num_prompt = 0;
  std::unique_ptr<CompactCache> cache;  // holds all tokens but the newest once it is running
};

}  // namespace

class Generator::Batch {
 public:
  Batch(Generator& generator, const std::vector<GenerationRequest>& requests)
      : source_(generator.source_),
        architecture_(source_.architecture()),
        policy_(generator.policy_),
        options_(generator.options_),
        requests_(requests),
        embedding_VD_(source_.embedding()),
        head_VD_(source_.head()),
        final_norm_D_(source_.final_norm()),
        rope_(make_rope_tables(architecture_, options_.max_positions, embedding_VD_.options())),
        pool_(std::make_shared<KvPool>(architecture_.head_dim, embedding_VD_.options().dtype(options_.stored_dtype),
                                       fast_layout(embedding_VD_.device()), options_.kv_budget_bytes)) {
    for (size_t i = 0; i < requests.size(); ++i) {
      const GenerationRequest& request = requests[i];
      const auto length = static_cast<int64_t>(request.prompt.size());
      const std::string where = "prompt " + std::to_string(i + 1);
      if (length == 0) throw UserError(where, "is empty");
      if (length + request.max_new_tokens > options_.max_positions) {
        throw UserError(where, "has " + std::to_string(length) + " tokens; with " +
                                   std::to_string(request.max_new_tokens) + " new ones it is longer than the " +
                                   std::to_string(options_.max_positions) + " positions allowed");
      }
      if (most_bytes(length) > options_.kv_budget_bytes) {
        throw UserError(where,
                        "has " + std::to_string(length) + " tokens, whose cache may take " +
                            std::to_string(most_bytes(length)) + " bytes while it is read",
                        {"the KV budget is " + std::to_string(options_.kv_budget_bytes) + " bytes"});
      }
      waiting_.push_back({i, request.prompt, length, nullptr});
    }
  }

  bool done() const { return waiting_.empty() && running_.empty(); }

  // Admits what fits, then gives every running sequence one token.
  void step(const TokenListener& on_token) {
    admit(on_token);
    if (running_.empty()) return;
    for (const Sequence& sequence : running_) make_room(*sequence.cache, 1);
    while (running_.size() > 1 && pages_wanted() > pool_->num_within_budget()) {
      running_.back().cache.reset();
      waiting_.push_front(std::move(running_.back()));
      running_.pop_back();
    }
    std::vector<CompactCache*> caches;
    std::vector<int32_t> newest;
    for (const Sequence& sequence : running_) {
      caches.push_back(sequence.cache.get());
      newest.push_back(sequence.tokens.back());
    }
    const at::Tensor x_BD = hard_student_step(source_, policy_, caches, embed_tokens(source_, newest), rope_);
    const at::Tensor logits_BV = logits(x_BD);
    std::vector<Sequence> still_running;
    for (size_t b = 0; b < running_.size(); ++b) {
      if (take_token(running_[b], logits_BV[static_cast<int64_t>(b)], on_token)) {
        still_running.push_back(std::move(running_[b]));
      }
    }
    running_ = std::move(still_running);
    note_memory();
  }

  const GenerationProgress& progress() const { return progress_; }

 private:
  int64_t dense_bytes(int64_t num_tokens) const {
    return architecture_.num_layers * architecture_.num_kv_heads * num_tokens * 2 *
           stored_row_bytes(architecture_.head_dim, options_.stored_dtype);
  }

  // What a sequence may take while `num_tokens` are read.
  int64_t most_bytes(int64_t num_tokens) const {
    const int64_t heads = architecture_.num_layers * architecture_.num_kv_heads;
    return std::min(heads * pool_->num_pages_for(num_tokens) * pool_->page_bytes(), options_.exact_budget_bytes);
  }

  // Pages that the next token of all running sequences may need.
  int64_t pages_wanted() const {
    int64_t pages = 0;
    for (const Sequence& sequence : running_) pages += sequence.cache->num_pages_wanted(1);
    return pages;
  }

  // Tokens read at a time: what a chunk adds before anything of it can go is a small part of an exact budget.
  int64_t chunk_tokens() const {
    return std::clamp<int64_t>(options_.exact_budget_bytes / dense_bytes(1) / 8, 1, kChunkTokens);
  }

  void make_room(CompactCache& cache, int64_t num_new) const {
    if (cache.make_room(num_new, options_.exact_budget_bytes)) return;
    throw UserError("the exact KV budget", "of " + std::to_string(options_.exact_budget_bytes) +
                                               " bytes does not hold the newest " +
                                               std::to_string(policy_.window() + 1) + " tokens, which always stay");
  }

  at::Tensor logits(const at::Tensor& x_BD) const {
    return few_rows_linear(rms_norm(x_BD, final_norm_D_, architecture_.rms_norm_eps), head_VD_, {});
  }

  void admit(const TokenListener& on_token) {
    while (!waiting_.empty() && static_cast<int64_t>(running_.size()) < options_.max_batch) {
      const auto length = static_cast<int64_t>(waiting_.front().tokens.size());
      if (!running_.empty() && most_bytes(length) > pool_->num_within_budget() * pool_->page_bytes()) break;
      Sequence sequence = std::move(waiting_.front());
      waiting_.pop_front();
      // Everything but the newest generated token; a fresh prompt is read whole and gives its first token here.
      const bool fresh = length == sequence.num_prompt;
      const at::Tensor last_D = prefill(sequence, fresh ? length : length - 1);
      if (!fresh || take_token(sequence, logits(last_D.unsqueeze(0))[0], on_token)) {
        running_.push_back(std::move(sequence));
      }
      note_memory();
    }
  }

  at::Tensor prefill(Sequence& sequence, int64_t length) {
    sequence.cache = std::make_unique<CompactCache>(make_cache(architecture_, policy_, pool_));
    at::Tensor x_nD;
    const int64_t step = chunk_tokens();
    for (int64_t first = 0; first < length; first += step) {
      const int64_t last = std::min(length, first + step);
      make_room(*sequence.cache, last - first);
      const std::vector<int32_t> chunk(sequence.tokens.begin() + first, sequence.tokens.begin() + last);
      x_nD = hard_student_chunk(source_, policy_, *sequence.cache, embed_tokens(source_, chunk), rope_);
    }
    return x_nD[x_nD.size(0) - 1];
  }

  // Draws the next token; false when the sequence has ended with it.
  bool take_token(Sequence& sequence, const at::Tensor& logits_V, const TokenListener& on_token) {
    const GenerationRequest& request = requests_[sequence.request];
    const int32_t token =
        sample_token(logits_V, request.sampling, request.sample, static_cast<uint64_t>(sequence.tokens.size()));
    sequence.tokens.push_back(token);
    ++progress_.tokens_generated;
    const auto generated = static_cast<int64_t>(sequence.tokens.size()) - sequence.num_prompt;
    const bool stops =
        std::find(options_.stop_tokens.begin(), options_.stop_tokens.end(), token) != options_.stop_tokens.end();
    const bool is_last = stops || generated >= request.max_new_tokens;
    if (is_last) ++progress_.sequences_finished;
    on_token(sequence.request, token, is_last, *sequence.cache);
    return !is_last;
  }

  void note_memory() {
    progress_.sequences_running = static_cast<int64_t>(running_.size());
    progress_.allocated_bytes = pool_->num_taken() * pool_->page_bytes();
    progress_.peak_allocated_bytes = pool_->allocated_bytes();
    progress_.dense_bytes = 0;
    for (const Sequence& sequence : running_) progress_.dense_bytes += dense_bytes(sequence.cache->num_tokens(0));
  }

  WeightSource& source_;
  const Architecture architecture_;
  const EvictionPolicy& policy_;
  const GeneratorOptions& options_;
  const std::vector<GenerationRequest>& requests_;
  const at::Tensor embedding_VD_, head_VD_, final_norm_D_;
  const RopeTables rope_;
  const std::shared_ptr<KvPool> pool_;

  std::deque<Sequence> waiting_;
  std::vector<Sequence> running_;  // in the order they joined
  GenerationProgress progress_;
};

Generator::Generator(WeightSource& source, const EvictionPolicy& policy, const GeneratorOptions& options)
    : source_(source), policy_(policy), options_(options) {}
Generator::~Generator() = default;

void Generator::run(const std::vector<GenerationRequest>& requests, const TokenListener& on_token,
                    const std::function<bool(const GenerationProgress&)>& on_progress) {
  const at::NoGradGuard no_grad;
  Batch batch(*this, requests);
  while (!batch.done()) {
    batch.step(on_token);
    if (!on_progress(batch.progress())) return;
  }
}

}  // namespace dms
