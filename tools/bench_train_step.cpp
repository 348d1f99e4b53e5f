#include "tools/bench_train_step.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "checkpoints/model_dir.h"
#include "recipes/user_error.h"
#include "trainer/hardware.h"
#include "trainer/optimizer.h"
#include "trainer/progress_line.h"
#include "trainer/run.h"
#include "trainer/step.h"
#include "trainer/trained_adapter.h"

namespace dms {

namespace {

// The rise of the target is over: the compression loss counts from the first step.
constexpr double kTargetCr = 8.0;

Recipe recipe_of(const TrainStepBenchmark& benchmark, const Architecture& architecture) {
  Recipe recipe;
  recipe.model_path = benchmark.model;
  recipe.adapter.kind = AdapterKind::linear;
  recipe.eviction.window = benchmark.window;
  recipe.compression.initial = recipe.compression.final = kTargetCr;
  recipe.trainer.global_batch = 1;
  recipe.trainer.sequence_length = benchmark.sequence_length;
  recipe.trainer.dtype = benchmark.dtype;
  recipe.trainer.activation_checkpointing = benchmark.checkpointing;
  resolve_recipe(recipe, architecture);
  return recipe;
}

std::unique_ptr<Adapter> adapter_of(const TrainStepBenchmark& benchmark, Recipe& recipe, WeightSource& source) {
  if (benchmark.adapters.empty()) return make_adapter(recipe.eviction, recipe.adapter, source, {});
  TrainedAdapter trained = load_trained_adapter(benchmark.adapters, source, base_model_hash(benchmark.model));
  recipe.eviction = trained.eviction;
  recipe.eviction.window = benchmark.window;
  return std::move(trained.adapter);
}

Sample random_sample(std::mt19937_64& random, int64_t num_tokens, int64_t vocab_size) {
  Sample sample;
  for (int64_t t = 0; t < num_tokens; ++t) {
    sample.tokens.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_size)));
  }
  sample.loss_mask.assign(static_cast<size_t>(num_tokens), 1);
  sample.document_offsets = {0, num_tokens};
  return sample;
}

double best_gemm_flops_per_s(const Architecture& a, int64_t num_tokens, at::ScalarType dtype) {
  double best = measure_gemm_flops_per_s(dtype);
  for (const auto& [inner, columns] :
       {std::pair{a.hidden_size, a.num_heads * a.head_dim}, std::pair{a.hidden_size, a.intermediate_size},
        std::pair{a.intermediate_size, a.hidden_size}, std::pair{a.hidden_size, a.vocab_size}}) {
    best = std::max(best, measure_gemm_flops_per_s(dtype, at::kCPU, num_tokens, inner, columns));
  }
  return best;
}

}  // namespace

TrainStepFigures bench_train_step(const TrainStepBenchmark& benchmark) {
  const int64_t num_tokens = benchmark.sequence_length;
  if (benchmark.window + 1 >= num_tokens) {
    throw UserError("--window", std::to_string(benchmark.window) + " leaves no key to evict in a sequence of --seq " +
                                    std::to_string(num_tokens));
  }
  Recipe recipe = recipe_of(benchmark, read_architecture(benchmark.model));
  const auto source = open_weights(benchmark.model, scalar_type(recipe.trainer.dtype));
  const Architecture& architecture = source->architecture();
  const auto adapter = adapter_of(benchmark, recipe, *source);
  const StepOptions options = step_options(recipe);
  const RopeTables rope = make_rope_tables(architecture, num_tokens, source->embedding().options());
  Optimizer optimizer(*adapter, recipe.trainer.optimizer);

  std::mt19937_64 random(0);
  std::vector<double> seconds;
  const std::unique_ptr<RankGroup> ranks = single_rank();
  {
    ProgressLine progress;
    const int64_t num_steps = benchmark.num_warm_up_steps + benchmark.num_steps;
    for (int64_t step = 0; step < num_steps; ++step) {
      const std::vector<Sample> batch{random_sample(random, num_tokens, architecture.vocab_size)};
      const auto begin = std::chrono::steady_clock::now();
      const StepResult result = training_step(*source, *adapter, options, rope, step, step, batch, *ranks);
      optimizer.step(result.gradients, global_norm(result.gradients), recipe.trainer.optimizer.learning_rate);
      seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
      progress.update("step " + std::to_string(step + 1) + "/" + std::to_string(num_steps), step + 1, num_steps);
    }
  }
  // First touch of the mapped weights, and the allocator's.
  seconds.erase(seconds.begin(), seconds.begin() + benchmark.num_warm_up_steps);
  std::sort(seconds.begin(), seconds.end());

  TrainStepFigures figures;
  figures.step_seconds = (seconds[(seconds.size() - 1) / 2] + seconds[seconds.size() / 2]) / 2.0;
  figures.step_seconds_min = seconds.front();
  figures.step_seconds_max = seconds.back();
  figures.tokens_per_s = static_cast<double>(num_tokens) / figures.step_seconds;
  figures.peak_memory_bytes = peak_memory_bytes();  // before the GEMMs below allocate theirs
  figures.gemm_flops_per_s = best_gemm_flops_per_s(architecture, num_tokens, source->dtype());
  figures.mfu = needed_flops_per_sequence(architecture, num_tokens) / figures.step_seconds / figures.gemm_flops_per_s;
  figures.dtype = source->dtype() == at::kBFloat16 ? "bfloat16" : "float32";
  figures.activation_checkpointing = name_of(recipe.trainer.activation_checkpointing);
  figures.threads = at::get_num_threads();
  return figures;
}

}  // namespace dms
