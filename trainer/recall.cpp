#include "trainer/recall.h"

#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <cmath>

#include "model/block.h"
#include "model/decoder.h"
#include "model/hard_student.h"

namespace dms {

namespace {

constexpr int64_t kChunkTokens = 256;  // as `dms eval` reads

class RecallEvaluator {
 public:
  RecallEvaluator(WeightSource& source, const std::vector<PlantedText>& texts)
      : source_(source),
        architecture_(source.architecture()),
        texts_(texts),
        final_norm_D_(source.final_norm()),
        head_VD_(source.head()),
        rope_(make_rope_tables(architecture_, longest(texts), source.embedding().options())) {
    record_.num_texts = std::ssize(texts);
    record_.length = std::ssize(texts.front().tokens);
    for (const PlantedText& text : texts) {
      for (const PlantedFact& fact : text.facts) record_.facts.push_back({fact.is_number, fact.distance, {}, {}});
    }
  }

  void run(size_t method, const EvictionPolicy& policy, const std::function<void(int64_t)>& progress) {
    size_t fact = 0;
    for (size_t t = 0; t < texts_.size(); ++t) {
      const PlantedText& text = texts_[t];
      CompactCache cache = make_cache(architecture_, policy, source_.embedding().options());
      for (int64_t first = 0; first < record_.length; first += kChunkTokens) {
        const int64_t last = std::min(record_.length, first + kChunkTokens);
        read(policy, cache, {text.tokens.begin() + first, text.tokens.begin() + last});
      }
      record_.live_keys[method] += cache.num_live_keys();
      record_.allocated_bytes[method] += cache.allocated_bytes();
      for (const PlantedFact& asked : text.facts) {
        CompactCache copy = cache.clone();
        ask(policy, copy, asked, method, record_.facts[fact++]);
      }
      progress(static_cast<int64_t>(t) + 1);
    }
  }

  // How many keys a head holds on average when it is asked.
  int64_t live_keys_per_head(size_t method) const {
    const auto heads = static_cast<double>(architecture_.num_layers * architecture_.num_kv_heads * record_.num_texts);
    return static_cast<int64_t>(std::ceil(static_cast<double>(record_.live_keys[method]) / heads));
  }

  RecallRecord& record() { return record_; }

 private:
  static int64_t longest(const std::vector<PlantedText>& texts) {
    int64_t tokens = 0;
    for (const PlantedText& text : texts) {
      for (const PlantedFact& fact : text.facts) {
        tokens = std::max(tokens, std::ssize(text.tokens) + std::ssize(fact.question) + std::ssize(fact.answer));
      }
    }
    return tokens;
  }

  at::Tensor read(const EvictionPolicy& policy, CompactCache& cache, const std::vector<int32_t>& tokens) {
    return hard_student_chunk(source_, policy, cache, embed_tokens(source_, tokens), rope_);
  }

  void ask(const EvictionPolicy& policy, CompactCache& cache, const PlantedFact& asked, size_t method,
           RecallRecord::Fact& fact) {
    std::vector<int32_t> tokens = asked.question;
    tokens.insert(tokens.end(), asked.answer.begin(), asked.answer.end() - 1);
    const auto num_answer = std::ssize(asked.answer);
    const at::Tensor x_nD = read(policy, cache, tokens);
    const at::Tensor last_nD = x_nD.slice(0, x_nD.size(0) - num_answer);
    const at::Tensor log_probability_nV = at::log_softmax(
        at::linear(rms_norm(last_nD, final_norm_D_, architecture_.rms_norm_eps), head_VD_), -1, at::kFloat);
    const at::Tensor likeliest_n = at::argmax(log_probability_nV, -1);
    fact.recalled[method] = true;
    for (int64_t i = 0; i < num_answer; ++i) {
      const int32_t token = asked.answer[static_cast<size_t>(i)];
      fact.recalled[method] = fact.recalled[method] && likeliest_n[i].item<int64_t>() == token;
      fact.answer_nll[method] -= log_probability_nV[i][token].item<double>() / static_cast<double>(num_answer);
    }
  }

  WeightSource& source_;
  const Architecture architecture_;
  const std::vector<PlantedText>& texts_;
  const at::Tensor final_norm_D_, head_VD_;
  const RopeTables rope_;
  RecallRecord record_;
};

}  // namespace

RecallRecord evaluate_recall(WeightSource& source, const Adapter& adapter, const EvictionOptions& eviction,
                             const std::vector<PlantedText>& texts,
                             const std::function<void(int64_t, int64_t)>& progress) {
  TORCH_CHECK(!texts.empty(), "no texts");
  const at::NoGradGuard no_grad;
  RecallEvaluator evaluator(source, texts);
  const int64_t kv_heads = source.architecture().num_kv_heads, count = std::ssize(texts);
  const auto counting_from = [&](int64_t before) {
    return [&progress, before, count](int64_t done) {
      progress(before + done, static_cast<int64_t>(kNumRecallMethods) * count);
    };
  };
  evaluator.run(0, *keep_everything_policy(kv_heads), counting_from(0));
  evaluator.run(1, *adapter_policy(adapter, eviction), counting_from(count));
  RecallRecord& record = evaluator.record();
  record.baseline_live_keys = evaluator.live_keys_per_head(1);
  evaluator.run(2, *sinks_and_window_policy(kv_heads, kNumSinks, record.baseline_live_keys), counting_from(2 * count));
  return std::move(record);
}

}  // namespace dms
