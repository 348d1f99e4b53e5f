#include "trainer/evaluate.h"

#include <ATen/core/grad_mode.h>
#include <cmath>

#include "model/decoder.h"
#include "model/hard_student.h"
#include "trainer/distill.h"
#include "trainer/last_use.h"
#include "trainer/ordered_sum.h"

namespace dms {

namespace {

// Prefill chunk.  Short enough that the uncompressed part of the cache stays small, long enough for efficient GEMMs.
constexpr int64_t kChunkTokens = 256;

void append_kl(std::vector<float>& all, const at::Tensor& kl_T) {
  const at::Tensor kl = kl_T.to(at::kCPU, at::kFloat).contiguous();
  all.insert(all.end(), kl.data_ptr<float>(), kl.data_ptr<float>() + kl.numel());
}

void add_memory(std::vector<EvaluationRecord::MemoryAtLength>& rows, const EvaluationRecord::MemoryAtLength& added) {
  auto row = std::find_if(rows.begin(), rows.end(), [&](const auto& r) { return r.tokens == added.tokens; });
  if (row == rows.end()) {
    rows.push_back(added);
    return;
  }
  row->num_sequences += added.num_sequences;
  row->dense_bytes += added.dense_bytes;
  row->allocated_bytes += added.allocated_bytes;
}

class Evaluator {
 public:
  Evaluator(WeightSource& source, const Adapter& adapter, const EvaluationOptions& options, int64_t sequence_length)
      : source_(source),
        architecture_(source.architecture()),
        adapter_(adapter),
        options_(options),
        head_{source.final_norm(), source.head(), architecture_.rms_norm_eps},
        rope_(make_rope_tables(architecture_, sequence_length, source.embedding().options())) {
    const auto heads = static_cast<size_t>(architecture_.num_kv_heads);
    record_.kept.assign(static_cast<size_t>(architecture_.num_layers), std::vector<double>(heads, 0.0));
    record_.counted = record_.kept;
    record_.sequence_length = sequence_length;
    record_.window = options.eviction.window;
  }

  EvaluationRecord run(const std::vector<Sample>& windows, const std::function<void(int64_t, int64_t)>& progress) {
    const auto num_windows = static_cast<int64_t>(windows.size());
    const int64_t total = num_windows * (options_.with_baselines ? 3 : 1);
    record_.num_windows = num_windows;
    std::vector<at::Tensor> teacher_TD;
    const std::unique_ptr<EvictionPolicy> trained = adapter_policy(adapter_, options_.eviction);
    for (int64_t i = 0; i < num_windows; ++i) {
      const Sample& window = windows[static_cast<size_t>(i)];
      teacher_TD.push_back(run_teacher(window));
      const HeadComparison comparison = run_method(*trained, window, teacher_TD.back(), record_.student, &record_);
      record_.teacher_nll_sum += ordered_sum(comparison.teacher_nll_T);
      const std::vector<int32_t> last_use = distances_to_last_use(window.tokens, documents_of(window));
      record_.last_use.insert(record_.last_use.end(), last_use.begin(), last_use.end());
      if (i == 0) measure_noise_floor(window, teacher_TD.back());
      progress(i + 1, total);
    }
    if (!options_.with_baselines) return std::move(record_);

    const double heads_and_sequences =
        static_cast<double>(architecture_.num_layers * architecture_.num_kv_heads * num_sequences_);
    record_.baseline_live_keys =
        static_cast<int64_t>(std::ceil(static_cast<double>(record_.student.live_keys) / heads_and_sequences));
    const int64_t heads = architecture_.num_kv_heads;
    const auto sliding = sinks_and_window_policy(heads, 0, record_.baseline_live_keys);
    const auto streaming = sinks_and_window_policy(heads, kNumSinks, record_.baseline_live_keys);
    for (int64_t i = 0; i < num_windows; ++i) {
      const size_t w = static_cast<size_t>(i);
      run_method(*sliding, windows[w], teacher_TD[w], record_.sliding_window, nullptr);
      progress(num_windows + 2 * i + 1, total);
      run_method(*streaming, windows[w], teacher_TD[w], record_.streaming_llm, nullptr);
      progress(num_windows + 2 * i + 2, total);
    }
    return std::move(record_);
  }

 private:
  DocumentOffsets documents_of(const Sample& window) const {
    return options_.attend_across_documents ? DocumentOffsets{0, static_cast<int64_t>(window.tokens.size())}
                                            : window.document_offsets;
  }

  template <class Layer>
  at::Tensor run_layers(const Sample& window, const Layer& layer_function) {
    const DocumentOffsets documents = documents_of(window);
    at::Tensor x_TD = embed_tokens(source_, window.tokens);
    for (int64_t layer = 0; layer < architecture_.num_layers; ++layer) {
      x_TD = layer_function(source_.layer(layer), x_TD, SequenceContext{rope_, documents});
    }
    return x_TD;
  }

  at::Tensor run_teacher(const Sample& window) {
    return run_layers(window,
                      [&](const LayerWeights& weights, const at::Tensor& x_TD, const SequenceContext& sequence) {
                        return teacher_layer(architecture_, weights, x_TD, sequence);
                      });
  }

  void measure_noise_floor(const Sample& window, const at::Tensor& teacher_TD) {
    record_.noise_floor_tokens = teacher_TD.size(0);
    for (AttentionPath path : {AttentionPath::dense, AttentionPath::sparse}) {
      const at::Tensor x_TD =
          run_layers(window, [&](const LayerWeights& weights, const at::Tensor& x, const SequenceContext& sequence) {
            return unbiased_student_layer(architecture_, weights, options_.eviction.window, path, x, sequence);
          });
      record_.noise_floor_kl_sum =
          std::max(record_.noise_floor_kl_sum, ordered_sum(compare_heads(head_, teacher_TD, x_TD, window.tokens).kl_T));
    }
  }

  // One method over one window, document by document with a fresh cache each.  `details` (the trained evictor only)
  // receives decisions, memory by length and the sample.
  HeadComparison run_method(const EvictionPolicy& policy, const Sample& window, const at::Tensor& teacher_TD,
                            MethodRecord& method, EvaluationRecord* details) {
    const DocumentOffsets documents = documents_of(window);
    const at::Tensor embedded_TD = embed_tokens(source_, window.tokens);
    std::vector<at::Tensor> outs;
    std::vector<int64_t> kept_heads;
    for (size_t j = 0; j + 1 < documents.size(); ++j) {
      const int64_t begin = documents[j], end = documents[j + 1];
      CompactCache cache = make_cache(architecture_, policy, embedded_TD.options());
      std::vector<std::vector<at::Tensor>> chunk_logits;
      for (int64_t first = begin; first < end; first += kChunkTokens) {
        const int64_t last = std::min(end, first + kChunkTokens);
        chunk_logits.emplace_back();
        outs.push_back(hard_student_chunk(source_, policy, cache, embedded_TD.slice(0, first, last), rope_,
                                          details != nullptr ? &chunk_logits.back() : nullptr));
        if (details != nullptr && documents.size() == 2) note_memory(*details, last, cache);
      }
      note_cache(method, cache, end - begin);
      if (details != nullptr) note_decisions(*details, chunk_logits, end - begin, kept_heads);
    }
    if (details != nullptr) {
      num_sequences_ += static_cast<int64_t>(documents.size()) - 1;
      if (details->sample_tokens.empty()) {
        details->sample_tokens = window.tokens;
        details->sample_kept_heads = std::move(kept_heads);
      }
    }
    const HeadComparison comparison = compare_heads(head_, teacher_TD, at::cat(outs), window.tokens);
    append_kl(method.kl, comparison.kl_T);
    method.same_top1 += ordered_sum(comparison.same_top1_T);
    method.nll_sum += ordered_sum(comparison.student_nll_T);
    method.nll_count += comparison.student_nll_T.numel();
    return comparison;
  }

  int64_t dense_bytes(int64_t num_tokens) const {
    const int64_t element_bytes = static_cast<int64_t>(source_.embedding().element_size());
    return architecture_.num_layers * architecture_.num_kv_heads * num_tokens * 2 * architecture_.head_dim *
           element_bytes;
  }

  void note_cache(MethodRecord& method, const CompactCache& cache, int64_t num_tokens) const {
    method.dense_bytes += dense_bytes(num_tokens);
    method.allocated_bytes += cache.pool().allocated_bytes();
    method.live_bytes += cache.live_bytes();
    method.live_keys += cache.num_live_keys();
    method.keys_read += cache.num_keys_read();
    method.dense_keys_read +=
        architecture_.num_layers * architecture_.num_kv_heads * (num_tokens * (num_tokens + 1) / 2);
  }

  void note_memory(EvaluationRecord& details, int64_t num_tokens, const CompactCache& cache) const {
    add_memory(details.memory_by_length, {num_tokens, 1, static_cast<double>(dense_bytes(num_tokens)),
                                          static_cast<double>(cache.pool().allocated_bytes())});
  }

  void note_decisions(EvaluationRecord& details, const std::vector<std::vector<at::Tensor>>& chunk_logits,
                      int64_t num_tokens, std::vector<int64_t>& kept_heads) const {
    const DocumentOffsets document{0, num_tokens};
    const at::Tensor far_T = counted_keys_T(num_tokens, options_.eviction.window, document);  // on the CPU, as all here
    at::Tensor kept_T = at::zeros({num_tokens}, at::kFloat);
    for (size_t layer = 0; layer < details.kept.size(); ++layer) {
      std::vector<at::Tensor> logits;
      for (const auto& chunk : chunk_logits) logits.push_back(chunk[layer]);
      const at::Tensor kept_GT =
          (decisions_GT(at::cat(logits, 1), options_.eviction.decision_shift, document) <= 0).to(at::kCPU, at::kFloat);
      kept_T += at::sum(kept_GT, 0);
      for (size_t g = 0; g < details.kept[layer].size(); ++g) {
        details.kept[layer][g] += ordered_sum(kept_GT[static_cast<int64_t>(g)] * far_T);
        details.counted[layer][g] += ordered_sum(far_T);
      }
    }
    const float* kept = kept_T.data_ptr<float>();
    for (int64_t t = 0; t < num_tokens; ++t) kept_heads.push_back(std::lround(kept[t]));
  }

  WeightSource& source_;
  const Architecture architecture_;
  const Adapter& adapter_;
  const EvaluationOptions& options_;
  const HeadWeights head_;
  const RopeTables rope_;
  EvaluationRecord record_;
  int64_t num_sequences_ = 0;  // documents, or windows when attention crosses documents
};

}  // namespace

void MethodRecord::append(const MethodRecord& other) {
  kl.insert(kl.end(), other.kl.begin(), other.kl.end());
  same_top1 += other.same_top1;
  nll_sum += other.nll_sum;
  nll_count += other.nll_count;
  dense_bytes += other.dense_bytes;
  allocated_bytes += other.allocated_bytes;
  live_bytes += other.live_bytes;
  dense_keys_read += other.dense_keys_read;
  keys_read += other.keys_read;
  live_keys += other.live_keys;
}

void EvaluationRecord::append(const EvaluationRecord& other) {
  if (num_windows == 0) {
    *this = other;
    return;
  }
  TORCH_CHECK(other.sequence_length == sequence_length && other.window == window, "records of different lengths");
  num_windows += other.num_windows;
  student.append(other.student);
  sliding_window.append(other.sliding_window);
  streaming_llm.append(other.streaming_llm);
  last_use.insert(last_use.end(), other.last_use.begin(), other.last_use.end());
  teacher_nll_sum += other.teacher_nll_sum;
  for (size_t layer = 0; layer < kept.size(); ++layer) {
    for (size_t g = 0; g < kept[layer].size(); ++g) {
      kept[layer][g] += other.kept[layer][g];
      counted[layer][g] += other.counted[layer][g];
    }
  }
  for (const MemoryAtLength& row : other.memory_by_length) add_memory(memory_by_length, row);
  noise_floor_kl_sum += other.noise_floor_kl_sum;
  noise_floor_tokens += other.noise_floor_tokens;
  baseline_live_keys = std::max(baseline_live_keys, other.baseline_live_keys);
}

EvaluationRecord evaluate(WeightSource& source, const Adapter& adapter, const EvaluationOptions& options,
                          const std::vector<Sample>& windows, const std::function<void(int64_t, int64_t)>& progress) {
  TORCH_CHECK(!windows.empty(), "no windows to evaluate");
  const at::NoGradGuard no_grad;
  return Evaluator(source, adapter, options, static_cast<int64_t>(windows.front().tokens.size()))
      .run(windows, progress);
}

}  // namespace dms
