#include "tools/bench_decode.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <random>

#include "checkpoints/model_dir.h"
#include "data/sample_order.h"
#include "model/decoder.h"
#include "model/hard_student.h"
#include "model/linear.h"
#include "model/parallel_tasks.h"
#include "recipes/user_error.h"
#include "tools/timing.h"
#include "tools/transformers_decode.h"
#include "trainer/hardware.h"
#include "trainer/model_tokens.h"
#include "trainer/trained_adapter.h"

namespace dms {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kUntimedSteps = 2;
constexpr int64_t kPrefillChunk = 256;
constexpr uint64_t kSeed = 1;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

std::vector<std::vector<int32_t>> prompts(const DecodeBenchmark& benchmark, const Architecture& a, int64_t context,
                                          int64_t count) {
  std::vector<std::vector<int32_t>> result;
  if (!benchmark.data.empty()) {
    const auto file = open_token_files({benchmark.data}, benchmark.model, a).front();
    for (const Sample& window : SampleOrder::evaluation_windows(*file, context, count * context)) {
      result.push_back(window.tokens);
    }
  }
  std::mt19937_64 random(kSeed);
  while (static_cast<int64_t>(result.size()) < count) {
    if (!benchmark.data.empty()) {
      result.push_back(result[result.size() % static_cast<size_t>(count)]);
      continue;
    }
    std::vector<int32_t> tokens;
    for (int64_t t = 0; t < context; ++t) {
      tokens.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(a.vocab_size)));
    }
    result.push_back(std::move(tokens));
  }
  return result;
}

// One engine setting at one context: prompts are read once, for all batches.
class DecodeRun {
 public:
  DecodeRun(const DecodeBenchmark& benchmark, WeightSource& source, const EvictionPolicy& policy, int64_t context)
      : benchmark_(benchmark),
        source_(source),
        policy_(policy),
        context_(context),
        options_(source.embedding().options().dtype(kv_dtype_named(benchmark.kv_dtype, source.dtype()))),
        rope_(make_rope_tables(source.architecture(), context + kUntimedSteps + benchmark.steps + 1,
                               source.embedding().options())),
        pool_(std::make_shared<KvPool>(source.architecture().head_dim, options_, fast_layout(options_.device()))) {}

  std::vector<DecodeRow> run(const std::vector<std::vector<int32_t>>& prompts, bool evict) {
    DecodeRow row;
    row.engine = "dms";
    row.evict = evict;
    row.context = context_;
    for (const auto& prompt : prompts) prefill(prompt, row);
    row.prefill_seconds /= static_cast<double>(prompts.size());
    std::vector<DecodeRow> rows;
    for (const int64_t sequences : numbers_of_sequences()) {
      row.sequences = sequences;
      decode(row);
      // Caches grow while they decode: what fitted after the prompt may not fit at the end.
      while (benchmark_.kv_budget_bytes > 0 && row.kv_bytes > benchmark_.kv_budget_bytes) {
        if (row.sequences == 1) throw_nothing_fits();
        row.sequences =
            std::clamp(row.sequences * benchmark_.kv_budget_bytes / row.kv_bytes, int64_t{1}, row.sequences - 1);
        decode(row);
      }
      rows.push_back(row);
    }
    return rows;
  }

 private:
  void prefill(const std::vector<int32_t>& prompt, DecodeRow& row) {
    const auto begin = Clock::now();
    CompactCache cache = make_cache(source_.architecture(), policy_, pool_);
    const auto length = static_cast<int64_t>(prompt.size());
    for (int64_t first = 0; first < length; first += kPrefillChunk) {
      const std::vector<int32_t> chunk(prompt.begin() + first,
                                       prompt.begin() + std::min(length, first + kPrefillChunk));
      hard_student_chunk(source_, policy_, cache, embed_tokens(source_, chunk), rope_);
      row.peak_prefill_kv_bytes = std::max(row.peak_prefill_kv_bytes, cache.allocated_bytes());
    }
    row.prefill_seconds += seconds_since(begin);
    caches_.push_back(std::move(cache));
  }

  std::vector<int64_t> numbers_of_sequences() const {
    if (!benchmark_.batches.empty()) return benchmark_.batches;
    int64_t bytes = 0, count = 0;
    while (true) {
      bytes += caches_[static_cast<size_t>(count) % caches_.size()].allocated_bytes();
      if (bytes > benchmark_.kv_budget_bytes) break;
      ++count;
    }
    if (count == 0) throw_nothing_fits();
    return {count};
  }

  [[noreturn]] void throw_nothing_fits() const {
    throw UserError("--kv-budget", "holds not one sequence of " + std::to_string(context_) + " tokens");
  }

  void decode(DecodeRow& row) {
    std::vector<CompactCache> caches;
    for (int64_t i = 0; i < row.sequences; ++i) {
      caches.push_back(caches_[static_cast<size_t>(i) % caches_.size()].clone());
    }
    std::vector<CompactCache*> batch;
    for (CompactCache& cache : caches) batch.push_back(&cache);
    const auto total = [&](const auto& of) {
      int64_t sum = 0;
      for (const CompactCache& cache : caches) sum += of(cache);
      return sum;
    };
    const auto keys_read_so_far = [&] {
      return total([](const CompactCache& cache) { return cache.num_keys_read(); });
    };
    const at::Tensor head_VD = source_.head(), final_norm_D = source_.final_norm();
    std::vector<int32_t> tokens(batch.size(), 0);
    std::vector<double> seconds;
    int64_t keys_read = 0;
    for (int64_t step = 0; step < kUntimedSteps + benchmark_.steps; ++step) {
      const int64_t read_before = keys_read_so_far();
      const auto begin = Clock::now();
      const at::Tensor x_BD = hard_student_step(source_, policy_, batch, embed_tokens(source_, tokens), rope_);
      const at::Tensor logits_BV =
          few_rows_linear(rms_norm(x_BD, final_norm_D, source_.architecture().rms_norm_eps), head_VD, {});
      const at::Tensor next_B = at::argmax(logits_BV, -1).to(at::kInt);
      for (size_t b = 0; b < tokens.size(); ++b) tokens[b] = next_B[static_cast<int64_t>(b)].item<int32_t>();
      if (step < kUntimedSteps) continue;
      seconds.push_back(seconds_since(begin));
      keys_read = keys_read_so_far() - read_before;
    }
    const Timing timing = timing_of(seconds);
    row.step_seconds = timing.median;
    row.step_seconds_min = timing.min;
    row.step_seconds_max = timing.max;
    row.kv_bytes = total([](const CompactCache& cache) { return cache.allocated_bytes(); });
    const int64_t row_bytes =
        2 * stored_row_bytes(source_.architecture().head_dim, c10::typeMetaToScalarType(options_.dtype()));
    row.kv_read_bytes_per_s = static_cast<double>(keys_read * row_bytes) / row.step_seconds;
  }

  const DecodeBenchmark& benchmark_;
  WeightSource& source_;
  const EvictionPolicy& policy_;
  const int64_t context_;
  const at::TensorOptions options_;
  const RopeTables rope_;
  const std::shared_ptr<KvPool> pool_;
  std::vector<CompactCache> caches_;  // of the prompts
};

}  // namespace

double measure_read_bandwidth() {
  // Far larger than any cache; every thread sums its own part.
  constexpr int64_t kFloats = int64_t{1} << 28;
  const at::Tensor data = at::ones({kFloats}, at::kFloat);
  const float* values = data.data_ptr<float>();
  double best_seconds = std::numeric_limits<double>::infinity();
  constexpr int64_t kTasks = 64, kTaskFloats = kFloats / kTasks;
  std::vector<float> sums(kTasks);
  for (int i = 0; i < 4; ++i) {
    const auto begin = Clock::now();
    run_tasks(kTasks, [&](int64_t task) {
      constexpr int64_t kStride = 32;
      float lane[kStride] = {};
      const float* from = values + task * kTaskFloats;
      for (int64_t j = 0; j < kTaskFloats; j += kStride) {
        for (int64_t k = 0; k < kStride; ++k) lane[k] += from[j + k];
      }
      float sum = 0.0F;
      for (float part : lane) sum += part;
      sums[static_cast<size_t>(task)] = sum;
    });
    best_seconds = std::min(best_seconds, seconds_since(begin));
  }
  TORCH_CHECK(sums[0] > 0.0F, "the sum is what keeps the reads");
  return static_cast<double>(kFloats) * sizeof(float) / best_seconds;
}

DecodeFigures bench_decode(const DecodeBenchmark& benchmark, const std::function<void(const std::string&)>& progress) {
  const at::NoGradGuard no_grad;
  const auto source = open_weights(benchmark.model, dtype_named(benchmark.dtype, at::kCPU));
  TrainedAdapter trained;
  if (!benchmark.adapters.empty()) {
    trained = load_trained_adapter(benchmark.adapters, *source, base_model_hash(benchmark.model));
  }
  if (benchmark.target.given()) progress("threshold");
  move_threshold(benchmark.target, "--target-ratio", trained.file.sequence_length, benchmark.model, *source, trained);
  DecodeFigures figures;
  figures.dtype = source->dtype() == at::kBFloat16 ? "bfloat16" : "float32";
  figures.kv_dtype = benchmark.kv_dtype == "auto" ? figures.dtype : benchmark.kv_dtype;
  figures.threads = at::get_num_threads();
  progress("memory bandwidth");
  figures.read_bandwidth_bytes_per_s = measure_read_bandwidth();
  const int64_t largest =
      benchmark.batches.empty() ? 1 : *std::max_element(benchmark.batches.begin(), benchmark.batches.end());
  for (const int64_t context : benchmark.contexts) {
    const std::string where = ", " + std::to_string(context) + " tokens";
    const auto prompt_tokens =
        prompts(benchmark, source->architecture(), context, benchmark.distinct > 0 ? benchmark.distinct : largest);
    std::vector<DecodeRow> rows;
    for (const bool evict : {false, true}) {
      if (evict && trained.adapter == nullptr) break;
      progress((evict ? "eviction on" : "eviction off") + where);
      const auto policy = evict ? adapter_policy(*trained.adapter, trained.eviction)
                                : keep_everything_policy(source->architecture().num_kv_heads);
      const auto measured = DecodeRun(benchmark, *source, *policy, context).run(prompt_tokens, evict);
      rows.insert(rows.end(), measured.begin(), measured.end());
    }
    if (!benchmark.transformers_python.empty()) {
      progress("transformers" + where);
      std::vector<int64_t> sequences = benchmark.batches;
      if (sequences.empty()) sequences = {rows.front().sequences};  // what fits without eviction
      const auto theirs = decode_with_transformers(benchmark.transformers_python, benchmark.model, prompt_tokens,
                                                   sequences, benchmark.steps, figures.dtype, figures.threads);
      rows.insert(rows.begin(), theirs.begin(), theirs.end());
    }
    figures.rows.insert(figures.rows.end(), rows.begin(), rows.end());
  }
  return figures;
}

}  // namespace dms
