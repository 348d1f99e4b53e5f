#include "tools/bench_decode.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <random>

#include "checkpoints/model_dir.h"
#include "data/sample_order.h"
#include "model/decoder.h"
#include "model/hard_student.h"
#include "recipes/user_error.h"
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

std::vector<std::vector<int32_t>> prompts(const DecodeBenchmark& benchmark, const Architecture& a, int64_t count) {
  std::vector<std::vector<int32_t>> result;
  if (!benchmark.data.empty()) {
    const auto file = open_token_files({benchmark.data}, benchmark.model, a).front();
    for (const Sample& window : SampleOrder::evaluation_windows(*file, benchmark.context, count * benchmark.context)) {
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
    for (int64_t t = 0; t < benchmark.context; ++t) {
      tokens.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(a.vocab_size)));
    }
    result.push_back(std::move(tokens));
  }
  return result;
}

class DecodeRun {
 public:
  DecodeRun(const DecodeBenchmark& benchmark, WeightSource& source, const EvictionPolicy& policy)
      : benchmark_(benchmark),
        source_(source),
        policy_(policy),
        options_(source.embedding().options()),
        rope_(make_rope_tables(source.architecture(), benchmark.context + kUntimedSteps + benchmark.steps + 1,
                               options_)) {}

  DecodeRow run(const std::vector<std::vector<int32_t>>& prompts) {
    DecodeRow row;
    for (const auto& prompt : prompts) prefill(prompt, row);
    row.prefill_seconds /= static_cast<double>(prompts.size());
    const size_t distinct = caches_.size();
    const size_t wanted = sequences_that_fit(distinct);
    while (caches_.size() > wanted) caches_.pop_back();
    for (size_t i = caches_.size(); i < wanted; ++i) caches_.push_back(caches_[i % distinct].clone());
    row.sequences = static_cast<int64_t>(wanted);
    decode(row);
    return row;
  }

 private:
  void prefill(const std::vector<int32_t>& prompt, DecodeRow& row) {
    const auto begin = Clock::now();
    CompactCache cache = make_cache(source_.architecture(), policy_, options_);
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

  size_t sequences_that_fit(size_t distinct) const {
    if (benchmark_.batch > 0) return static_cast<size_t>(benchmark_.batch);
    int64_t bytes = 0;
    size_t count = 0;
    while (true) {
      bytes += caches_[count % distinct].allocated_bytes();
      if (bytes > benchmark_.kv_budget_bytes) break;
      ++count;
    }
    if (count == 0) {
      throw UserError("--kv-budget", "holds not one sequence of " + std::to_string(benchmark_.context) + " tokens");
    }
    return count;
  }

  void decode(DecodeRow& row) {
    std::vector<CompactCache*> batch;
    for (CompactCache& cache : caches_) batch.push_back(&cache);
    const at::Tensor head_VD = source_.head();
    std::vector<int32_t> tokens(batch.size(), 0);
    std::vector<double> seconds;
    int64_t keys_read = 0;
    for (int64_t step = 0; step < kUntimedSteps + benchmark_.steps; ++step) {
      const int64_t read_before = total_keys_read();
      const auto begin = Clock::now();
      const at::Tensor x_BD = hard_student_step(source_, policy_, batch, embed_tokens(source_, tokens), rope_);
      const at::Tensor next_B = at::argmax(at::linear(x_BD, head_VD), -1).to(at::kInt);
      for (size_t b = 0; b < tokens.size(); ++b) tokens[b] = next_B[static_cast<int64_t>(b)].item<int32_t>();
      if (step < kUntimedSteps) continue;
      seconds.push_back(seconds_since(begin));
      keys_read = total_keys_read() - read_before;
    }
    std::sort(seconds.begin(), seconds.end());
    row.step_seconds = (seconds[(seconds.size() - 1) / 2] + seconds[seconds.size() / 2]) / 2.0;
    row.step_seconds_min = seconds.front();
    row.step_seconds_max = seconds.back();
    row.tokens_per_s = static_cast<double>(batch.size()) / row.step_seconds;
    for (const CompactCache& cache : caches_) row.kv_bytes += cache.allocated_bytes();
    const double row_bytes = 2.0 * static_cast<double>(source_.architecture().head_dim) *
                             static_cast<double>(c10::elementSize(c10::typeMetaToScalarType(options_.dtype())));
    row.kv_read_bytes_per_s = static_cast<double>(keys_read) * row_bytes / row.step_seconds;
  }

  int64_t total_keys_read() const {
    int64_t keys = 0;
    for (const CompactCache& cache : caches_) keys += cache.num_keys_read();
    return keys;
  }

  const DecodeBenchmark& benchmark_;
  WeightSource& source_;
  const EvictionPolicy& policy_;
  const at::TensorOptions options_;
  const RopeTables rope_;
  std::vector<CompactCache> caches_;
};

}  // namespace

double measure_read_bandwidth() {
  // Far larger than any cache; every thread sums its own part.
  constexpr int64_t kFloats = int64_t{1} << 28;
  const at::Tensor data = at::ones({kFloats}, at::kFloat);
  const float* values = data.data_ptr<float>();
  double best_seconds = std::numeric_limits<double>::infinity();
  std::vector<float> sums(static_cast<size_t>(at::get_num_threads()));
  for (int i = 0; i < 4; ++i) {
    const auto begin = Clock::now();
    at::parallel_for(0, kFloats, kFloats / at::get_num_threads(), [&](int64_t first, int64_t last) {
      constexpr int64_t kLanes = 32;
      float lane[kLanes] = {};
      for (int64_t j = first; j + kLanes <= last; j += kLanes) {
        for (int64_t k = 0; k < kLanes; ++k) lane[k] += values[j + k];
      }
      float sum = 0.0F;
      for (float part : lane) sum += part;
      sums[static_cast<size_t>(at::get_thread_num())] = sum;
    });
    best_seconds = std::min(best_seconds, seconds_since(begin));
  }
  TORCH_CHECK(sums[0] > 0.0F, "the sum is what keeps the reads");
  return static_cast<double>(kFloats) * sizeof(float) / best_seconds;
}

DecodeFigures bench_decode(const DecodeBenchmark& benchmark, const std::function<void(const std::string&)>& progress) {
  const at::NoGradGuard no_grad;
  const auto source = open_weights(benchmark.model, dtype_named(benchmark.dtype, at::kCPU));
  const TrainedAdapter trained = load_trained_adapter(benchmark.adapters, *source, base_model_hash(benchmark.model));
  const int64_t distinct = benchmark.distinct > 0 ? benchmark.distinct : std::max<int64_t>(1, benchmark.batch);
  const auto prompt_tokens = prompts(benchmark, source->architecture(), distinct);

  DecodeFigures figures;
  progress("memory bandwidth");
  figures.read_bandwidth_bytes_per_s = measure_read_bandwidth();
  for (const bool evict : {false, true}) {
    progress(evict ? "eviction on" : "eviction off");
    const auto policy = evict ? adapter_policy(*trained.adapter, trained.eviction)
                              : keep_everything_policy(source->architecture().num_kv_heads);
    figures.rows.push_back(DecodeRun(benchmark, *source, *policy).run(prompt_tokens));
    figures.rows.back().evict = evict;
  }
  figures.dtype = source->dtype() == at::kBFloat16 ? "bfloat16" : "float32";
  figures.threads = at::get_num_threads();
  return figures;
}

}  // namespace dms
