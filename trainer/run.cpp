#include "trainer/run.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <stdexcept>

#include "checkpoints/model_dir.h"
#include "checkpoints/run_dir.h"
#include "data/sample_order.h"
#include "data/staged_file.h"
#include "recipes/user_error.h"
#include "trainer/hardware.h"
#include "trainer/metrics.h"
#include "trainer/model_tokens.h"
#include "trainer/neuron_choice.h"
#include "trainer/progress_line.h"
#include "trainer/run_state.h"
#include "trainer/trained_adapter.h"

namespace dms {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

template <class... Args>
std::string format(const char* pattern, Args... args) {
  char text[512];
  std::snprintf(text, sizeof(text), pattern, args...);
  return text;
}

// Calibration text is drawn in another order than training text, so that steps do not begin by repeating it.
uint64_t calibration_seed(const Recipe& recipe) {
  return static_cast<uint64_t>(recipe.trainer.seed) ^ 0x63616c6962726174ULL;  // "calibrat"
}

class Run {
 public:
  Run(Recipe recipe, const RunOptions& options)
      : recipe_(std::move(recipe)),
        options_(options),
        source_(open_weights(recipe_.model_path, scalar_type(recipe_.trainer.dtype))),
        architecture_(source_->architecture()),
        rope_(make_rope_tables(architecture_, recipe_.trainer.sequence_length, source_->embedding().options())),
        files_(open_token_files(recipe_.data.train, recipe_.model_path, architecture_)),
        order_(files_, recipe_.trainer.sequence_length, static_cast<uint64_t>(recipe_.trainer.seed)),
        calibration_(files_, recipe_.trainer.sequence_length, calibration_seed(recipe_)) {
    origin_.base_model = base_model_name(recipe_.model_path);
    origin_.base_sha256 = base_model_hash(recipe_.model_path);
    origin_.recipe_sha256 = sha256_hex(dump_recipe(recipe_));
  }

  void execute() {
    announce();
    const std::string checkpoint = options_.resume ? newest_checkpoint(options_.run_dir) : "";
    int64_t step = checkpoint.empty() ? start_fresh() : continue_from(checkpoint);
    const StepOptions step_options = dms::step_options(recipe_);
    MetricsLog metrics(options_.run_dir, step);
    const double gemm_flops_per_s = step < recipe_.trainer.steps ? measure_gemm_flops_per_s(source_->dtype()) : 1.0;
    ProgressLine progress;
    for (; step < recipe_.trainer.steps; ++step) {
      if (options_.stop_requested()) {
        save(step);
        throw Interrupted("stopped at step " + std::to_string(step) + "; --resume continues from there");
      }
      const StepMetrics done = train_one_step(step_options, step, gemm_flops_per_s);
      metrics.append(done);
      progress.update(describe(done), step + 1, recipe_.trainer.steps);
      if ((step + 1) % recipe_.trainer.checkpoint_every == 0 && step + 1 < recipe_.trainer.steps) save(step + 1);
    }
    if (saved_step_ != recipe_.trainer.steps) save(recipe_.trainer.steps);
  }

 private:
  void announce() const {
    std::fprintf(stderr, "%s: %s, %ld layers, %ld KV heads, %.1fM parameters, %s\n", origin_.base_model.c_str(),
                 architecture_.family.model_type.c_str(), architecture_.num_layers, architecture_.num_kv_heads,
                 static_cast<double>(architecture_.num_parameters()) * 1e-6,
                 source_->dtype() == at::kBFloat16 ? "bfloat16" : "float32");
  }

  // Adapter, warm start, run directory.  Returns the first step.
  int64_t start_fresh() {
    std::vector<std::vector<BorrowedChannel>> borrowed;
    if (recipe_.adapter.kind == AdapterKind::neuron) {
      borrowed = choose_neurons(*source_, recipe_.adapter, recipe_.eviction, rope_, calibration_.sample(0));
    }
    adapter_ = make_adapter(recipe_.eviction, recipe_.adapter, *source_, borrowed);
    if (recipe_.adapter.kind == AdapterKind::neuron) announce_borrowing();
    if (recipe_.warm_start.tokens > 0) fit_adapter();

    fs::create_directories(options_.run_dir);
    write_file(options_.run_dir + "/recipe.yaml", dump_recipe(recipe_));
    optimizer_ = std::make_unique<Optimizer>(*adapter_, recipe_.trainer.optimizer);
    save(0);
    return 0;
  }

  void announce_borrowing() const {
    const BorrowingCost cost = borrowing_cost_kl(*source_, *adapter_, rope_, calibration_.sample(1));
    std::fprintf(stderr, "borrowing %ld query channels costs a KL of %.6f nats/token before any eviction; by layer:",
                 architecture_.num_layers * architecture_.num_kv_heads, cost.all);
    for (size_t layer = 0; layer < cost.of_layer_L.size(); ++layer) {
      std::fprintf(stderr, "%s%2zu %.6f", layer % 6 == 0 ? "\n  " : "  ", layer, cost.of_layer_L[layer]);
    }
    std::fprintf(stderr, "\n");
  }

  // Channels leave the attention score over zeroing_steps; what is saved and evaluated is without them.
  void set_borrowed_share(int64_t step) {
    const auto zeroing_steps = static_cast<double>(recipe_.adapter.zeroing_steps);
    adapter_->set_borrowed_share(zeroing_steps > 0 ? std::max(1.0 - static_cast<double>(step) / zeroing_steps, 0.0)
                                                   : 0.0);
  }

  void fit_adapter() {
    const int64_t num_sequences = recipe_.warm_start.tokens / recipe_.trainer.sequence_length;
    std::vector<Sample> samples;
    for (int64_t i = 0; i < num_sequences; ++i) samples.push_back(calibration_.sample(2 + i));
    ProgressLine progress;
    const WarmStartResult fit = warm_start(
        *source_, *adapter_, recipe_.eviction, recipe_.warm_start, recipe_.data.attend_across_documents, rope_, samples,
        [&](int64_t done, int64_t total) {
          progress.update(format("warm start: layer %ld/%ld", done, total), done, total);
        },
        options_.stop_requested);
    progress.note(format("warm start: %.1fx fitted on %ld tokens in %s", recipe_.warm_start.compression, fit.tokens,
                         format_duration(fit.seconds).c_str()));
  }

  int64_t continue_from(const std::string& checkpoint) {
    TrainedAdapter trained = load_trained_adapter(checkpoint, *source_, origin_.base_sha256);
    adapter_ = std::move(trained.adapter);
    optimizer_ = std::make_unique<Optimizer>(*adapter_, recipe_.trainer.optimizer);
    const int64_t step = load_optimizer(checkpoint, *optimizer_);
    saved_step_ = step;
    std::fprintf(stderr, "resuming %s at step %ld\n", options_.run_dir.c_str(), step);
    return step;
  }

  StepMetrics train_one_step(const StepOptions& step_options, int64_t step, double gemm_flops_per_s) {
    const auto begin = Clock::now();
    const int64_t first_sample = step * recipe_.trainer.global_batch;
    std::vector<Sample> batch;
    for (int64_t i = 0; i < recipe_.trainer.global_batch; ++i) batch.push_back(order_.sample(first_sample + i));
    set_borrowed_share(step);
    const StepResult result = training_step(*source_, *adapter_, step_options, rope_, step, first_sample, batch);
    const double gradient_norm = global_norm(result.gradients);
    require_finite(result, gradient_norm, step);
    const double learning_rate = learning_rate_at(recipe_.trainer.optimizer, step, recipe_.trainer.steps);
    optimizer_->step(result.gradients, gradient_norm, learning_rate);

    StepMetrics metrics;
    metrics.step = step;
    metrics.loss = result.loss;
    metrics.kl = result.kl;
    metrics.compression_loss = result.compression_loss;
    metrics.target_cr = result.target_cr;
    metrics.eviction_rate = result.eviction_rate;
    metrics.alpha_mean = result.alpha_mean;
    metrics.grad_norm = gradient_norm;
    metrics.lr = learning_rate;
    metrics.seconds = seconds_since(begin);
    const double sequences = static_cast<double>(recipe_.trainer.global_batch);
    metrics.tokens_per_s = sequences * static_cast<double>(recipe_.trainer.sequence_length) / metrics.seconds;
    metrics.mfu = sequences * needed_flops_per_sequence(architecture_, recipe_.trainer.sequence_length) /
                  metrics.seconds / gemm_flops_per_s;
    metrics.peak_memory_bytes = peak_memory_bytes();
    return metrics;
  }

  // Nothing of the step has been applied yet: the checkpoint that is saved is the state before it.
  void require_finite(const StepResult& result, double gradient_norm, int64_t step) {
    if (std::isfinite(result.loss) && std::isfinite(gradient_norm)) return;
    if (saved_step_ != step) save(step);
    throw std::runtime_error(
        format("step %ld: the loss is %g and the gradient norm %g; stopped before the update\n"
               "  the state before this step is saved; try a smaller trainer.learning_rate, trainer.dtype=float32,\n"
               "  or a smaller eviction.truncate_at",
               step, result.loss, gradient_norm));
  }

  std::string describe(const StepMetrics& m) const {
    return format("step %ld/%ld  kl %.4f  loss %.4f  evict %.3f/%.3f  CR %.2f  lr %.2g  %.0f tok/s", m.step + 1,
                  recipe_.trainer.steps, m.kl, m.loss, m.eviction_rate, target_fraction(m.target_cr), m.target_cr, m.lr,
                  m.tokens_per_s);
  }

  void save(int64_t step) {
    origin_.step = step;
    save_checkpoint(options_.run_dir, *adapter_, *optimizer_, recipe_, origin_);
    saved_step_ = step;
  }

  Recipe recipe_;
  const RunOptions& options_;
  std::unique_ptr<WeightSource> source_;
  const Architecture architecture_;
  const RopeTables rope_;
  const std::vector<std::shared_ptr<TokenFile>> files_;
  const SampleOrder order_, calibration_;
  AdapterOrigin origin_;
  std::unique_ptr<Adapter> adapter_;
  std::unique_ptr<Optimizer> optimizer_;
  int64_t saved_step_ = -1;
};

// A run directory that cannot be made should be found out before the warm start, not after it.
void require_makeable_directory(const std::string& path) {
  fs::path existing = fs::absolute(path);
  std::error_code ignored;
  while (!fs::exists(existing, ignored) && existing.has_relative_path()) existing = existing.parent_path();
  if (!fs::is_directory(existing, ignored)) {
    throw UserError(path, "cannot be made: '" + existing.string() + "' is not a directory");
  }
  if (::access(existing.c_str(), W_OK | X_OK) != 0) {
    throw UserError(path, "cannot be made: '" + existing.string() + "' is not writable", {std::strerror(errno)});
  }
}

ActivationCheckpointing fastest_plan_that_fits(const Recipe& recipe, const Architecture& architecture) {
  const int64_t limit =
      recipe.trainer.memory_limit_bytes >= 0 ? recipe.trainer.memory_limit_bytes : available_memory_bytes() / 5 * 4;
  const auto element_bytes = static_cast<int64_t>(c10::elementSize(scalar_type(recipe.trainer.dtype)));
  for (const auto plan : {ActivationCheckpointing::none, ActivationCheckpointing::selective}) {
    const int64_t activations =
        recipe.trainer.global_batch *
        kept_activation_bytes(plan, architecture, recipe.trainer.sequence_length, element_bytes);
    if (activations + architecture.num_parameters() * element_bytes <= limit) return plan;
  }
  return ActivationCheckpointing::full;
}

}  // namespace

void resolve_recipe(Recipe& recipe, const Architecture& architecture) {
  require_exportable(recipe, architecture);
  const bool native = cpu_computes_bfloat16();
  if (recipe.trainer.dtype == ComputeDtype::automatic) {
    recipe.trainer.dtype = native ? ComputeDtype::bfloat16 : ComputeDtype::float32;
  } else if (recipe.trainer.dtype == ComputeDtype::bfloat16 && !native) {
    std::fprintf(stderr, "warning: this processor has no bfloat16 instructions; float32 would be far faster\n");
  }
  if (recipe.trainer.activation_checkpointing == ActivationCheckpointing::automatic) {
    recipe.trainer.activation_checkpointing = fastest_plan_that_fits(recipe, architecture);
  }
  if (recipe.trainer.sequence_length > architecture.max_positions) {
    std::fprintf(stderr, "warning: trainer.sequence_length %ld is beyond the model's max_position_embeddings %ld\n",
                 recipe.trainer.sequence_length, architecture.max_positions);
  }
}

void train(Recipe recipe, const RunOptions& options) {
  const bool exists = fs::exists(options.run_dir + "/recipe.yaml");
  if (exists && !options.resume) {
    throw UserError(options.run_dir, "already holds a run", {"--resume continues it; another --run-dir starts afresh"});
  }
  if (fs::exists(options.run_dir) && !fs::is_directory(options.run_dir)) {
    throw UserError(options.run_dir, "is not a directory");
  }
  require_makeable_directory(options.run_dir);
  const Architecture architecture = read_architecture(recipe.model_path);
  if (exists) recipe = recipe_to_resume(options.run_dir, std::move(recipe));
  resolve_recipe(recipe, architecture);
  Run(std::move(recipe), options).execute();
}

}  // namespace dms
