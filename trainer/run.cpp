#include "trainer/run.h"

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <optional>
#include <stdexcept>

#include "checkpoints/model_dir.h"
#include "checkpoints/run_dir.h"
#include "checkpoints/run_lock.h"
#include "data/sample_order.h"
#include "data/staged_file.h"
#include "model/device_weights.h"
#include "model/streamed_weights.h"
#include "recipes/user_error.h"
#include "trainer/checkpoint_writer.h"
#include "trainer/hardware.h"
#include "trainer/metrics.h"
#include "trainer/model_tokens.h"
#include "trainer/neuron_choice.h"
#include "trainer/progress_line.h"
#include "trainer/run_state.h"
#include "trainer/sharded_weights.h"
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

// The ranks of one host share its GPUs evenly.
at::Device device_of(const Recipe& recipe, const RankGroup& ranks) {
  if (recipe.trainer.device != ComputeDevice::cuda) return at::kCPU;
  int64_t local_rank = 0, local_size = 0;
  for (int64_t r = 0; r < ranks.size(); ++r) {
    if (ranks.host_of(r) != ranks.host_of(ranks.rank())) continue;
    ++local_size;
    if (r < ranks.rank()) ++local_rank;
  }
  const int64_t num_gpus = at::detail::getCUDAHooks().getNumGPUs();
  require_gpu_for_each_rank(recipe, local_size, num_gpus);
  return {at::kCUDA, static_cast<at::DeviceIndex>(local_rank % num_gpus)};
}

std::unique_ptr<WeightSource> place_weights(const Recipe& recipe, RankGroup& ranks) {
  const at::Device device = device_of(recipe, ranks);
  const Placement placement = recipe.trainer.placement;
  // What is read again and again stays in the host's memory.
  const bool keep = placement == (device.is_cpu() ? Placement::replicate : Placement::host);
  auto whole =
      open_weights(recipe.model_path, scalar_type(recipe.trainer.dtype), {.keep = keep, .warn = ranks.speaks()});
  if (!device.is_cpu()) {
    whole = placement == Placement::replicate ? on_device(std::move(whole), device)
                                              : std::make_unique<StreamedWeights>(std::move(whole), device);
  }
  // Shards live, and travel, where they are used.
  if (placement == Placement::shard) return std::make_unique<ShardedWeights>(std::move(whole), ranks);
  return whole;
}

class Run {
 public:
  Run(Recipe recipe, const RunOptions& options, RankGroup& ranks)
      : recipe_(std::move(recipe)),
        options_(options),
        ranks_(ranks),
        source_(place_weights(recipe_, ranks)),
        architecture_(source_->architecture()),
        rope_(make_rope_tables(architecture_, recipe_.trainer.sequence_length, source_->final_norm().options())),
        files_(open_token_files(recipe_.data.train, recipe_.model_path, architecture_)),
        order_(files_, recipe_.trainer.sequence_length, static_cast<uint64_t>(recipe_.trainer.seed)),
        calibration_(files_, recipe_.trainer.sequence_length, calibration_seed(recipe_)),
        writer_(options.run_dir, recipe_.trainer.keep) {
    origin_.base_model = base_model_name(recipe_.model_path);
    origin_.base_sha256 = ranks_.broadcast(ranks_.speaks() ? base_model_hash(recipe_.model_path) : std::string(), 0,
                                           "the base model's hash");
    origin_.recipe_sha256 = sha256_hex(dump_recipe(recipe_));
  }

  void execute() {
    if (ranks_.speaks()) {
      announce();
      remove_unfinished(options_.run_dir);
    }
    const std::string checkpoint = ranks_.broadcast(
        options_.resume && ranks_.speaks() ? newest_checkpoint(options_.run_dir) : std::string(), 0, "the checkpoint");
    int64_t step = checkpoint.empty() ? start_fresh() : continue_from(checkpoint);
    const StepOptions step_options = dms::step_options(recipe_);
    std::optional<MetricsLog> metrics;
    if (ranks_.speaks()) metrics.emplace(options_.run_dir, step);
    const double gemm_flops_per_s =
        step < recipe_.trainer.steps ? measure_gemm_flops_per_s(source_->dtype(), rope_.cos_Td.device()) : 1.0;
    return_freed_memory();
    ProgressLine progress(ranks_.speaks());
    for (; step < recipe_.trainer.steps; ++step) {
      if (ranks_.any(options_.stop_requested(), "step " + std::to_string(step) + " to begin")) {
        save(step);
        writer_.finish();
        throw Interrupted("stopped at step " + std::to_string(step) + "; --resume continues from there");
      }
      const StepMetrics done = train_one_step(step_options, step, gemm_flops_per_s);
      if (metrics) metrics->append(done);
      progress.update(describe(done), step + 1, recipe_.trainer.steps);
      name_straggler(straggler_of(done), progress);
      if ((step + 1) % recipe_.trainer.checkpoint_every == 0 && step + 1 < recipe_.trainer.steps) save(step + 1);
    }
    if (saved_step_ != recipe_.trainer.steps) save(recipe_.trainer.steps);
    writer_.finish();
    ranks_.barrier("the last checkpoint");
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
    return_freed_memory();

    if (ranks_.speaks()) {
      fs::create_directories(options_.run_dir);
      write_file(options_.run_dir + "/recipe.yaml", dump_recipe(recipe_));
    }
    optimizer_ = std::make_unique<Optimizer>(*adapter_, recipe_.trainer.optimizer);
    save(0);
    return 0;
  }

  void announce_borrowing() const {
    const BorrowingCost cost = borrowing_cost_kl(*source_, *adapter_, rope_, calibration_.sample(1));
    if (!ranks_.speaks()) return;
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
    ProgressLine progress(ranks_.speaks());
    const WarmStartResult fit = warm_start(
        *source_, *adapter_, recipe_.eviction, recipe_.warm_start, recipe_.data.attend_across_documents, rope_, samples,
        [&](int64_t done, int64_t total) {
          progress.update(format("warm start: layer %ld/%ld", done, total), done, total);
        },
        [&] { return ranks_.any(options_.stop_requested(), "the warm start's next layer"); }, ranks_);
    progress.note(format("warm start: %.1fx fitted on %ld tokens in %s, with %.0f MiB of calibration data in memory",
                         recipe_.warm_start.compression, fit.tokens, format_duration(fit.seconds).c_str(),
                         static_cast<double>(fit.bytes) / (1 << 20)));
  }

  int64_t continue_from(const std::string& checkpoint) {
    TrainedAdapter trained = load_trained_adapter(checkpoint, *source_, origin_.base_sha256);
    adapter_ = std::move(trained.adapter);
    optimizer_ = std::make_unique<Optimizer>(*adapter_, recipe_.trainer.optimizer);
    const int64_t step = load_optimizer(checkpoint, *optimizer_);
    saved_step_ = step;
    if (ranks_.speaks()) std::fprintf(stderr, "resuming %s at step %ld\n", options_.run_dir.c_str(), step);
    return step;
  }

  StepMetrics train_one_step(const StepOptions& step_options, int64_t step, double gemm_flops_per_s) {
    const auto begin = Clock::now();
    const double waited_before = ranks_.waited_seconds();
    const int64_t first_sample = step * recipe_.trainer.global_batch;
    const auto [share_begin, share_end] = share_of_rank(recipe_.trainer.global_batch, ranks_.rank(), ranks_.size());
    std::vector<Sample> batch;
    for (int64_t i = share_begin; i < share_end; ++i) batch.push_back(order_.sample(first_sample + i));
    const double data_seconds = seconds_since(begin);
    set_borrowed_share(step);
    const StepResult result =
        training_step(*source_, *adapter_, step_options, rope_, step, first_sample, batch, ranks_);
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
    record_times(metrics, data_seconds, ranks_.waited_seconds() - waited_before);
    const double sequences = static_cast<double>(recipe_.trainer.global_batch);
    metrics.tokens_per_s = sequences * static_cast<double>(recipe_.trainer.sequence_length) / metrics.seconds;
    metrics.mfu = sequences * needed_flops_per_sequence(architecture_, recipe_.trainer.sequence_length) /
                  metrics.seconds / gemm_flops_per_s / static_cast<double>(ranks_.size());
    metrics.peak_memory_bytes = peak_device_memory_bytes(rope_.cos_Td.device());
    return metrics;
  }

  // A rank that is slow step after step, once.
  void name_straggler(int64_t slow, ProgressLine& progress) {
    constexpr int64_t kStepsInARow = 10;
    slow_steps_ = slow >= 0 && slow == slow_rank_ ? slow_steps_ + 1 : 1;
    slow_rank_ = slow;
    if (slow < 0 || slow_steps_ != kStepsInARow) return;
    progress.note(format("rank %ld on %s has computed over %.0f%% longer than the others for %ld steps", slow,
                         ranks_.host_of(slow).c_str(), 100.0 * kStragglerShare, kStepsInARow));
  }

  void record_times(StepMetrics& metrics, double data_seconds, double communication_seconds) {
    const at::Tensor all_R3 = ranks_.all_gather(
        at::tensor({metrics.seconds, data_seconds, communication_seconds}, at::kDouble), "the step's times");
    for (int64_t r = 0; r < ranks_.size(); ++r) {
      const double* times = all_R3.data_ptr<double>() + 3 * r;
      metrics.rank_seconds.push_back(times[0]);
      metrics.rank_data_seconds.push_back(times[1]);
      metrics.rank_communication_seconds.push_back(times[2]);
      metrics.rank_compute_seconds.push_back(times[0] - times[1] - times[2]);
    }
  }

  // Nothing of the step has been applied yet: the checkpoint that is saved is the state before it.
  void require_finite(const StepResult& result, double gradient_norm, int64_t step) {
    if (std::isfinite(result.loss) && std::isfinite(gradient_norm)) return;
    if (saved_step_ != step) save(step);
    writer_.finish();
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
    if (ranks_.speaks()) writer_.start(checkpoint_contents(*adapter_, *optimizer_, recipe_, origin_));
    saved_step_ = step;
  }

  Recipe recipe_;
  const RunOptions& options_;
  RankGroup& ranks_;
  std::unique_ptr<WeightSource> source_;
  const Architecture architecture_;
  const RopeTables rope_;
  const std::vector<std::shared_ptr<TokenFile>> files_;
  const SampleOrder order_, calibration_;
  AdapterOrigin origin_;
  std::unique_ptr<Adapter> adapter_;
  std::unique_ptr<Optimizer> optimizer_;
  int64_t saved_step_ = -1;
  int64_t slow_rank_ = -1, slow_steps_ = 0;  // the straggler of the last steps
  CheckpointWriter writer_;
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

// `bytes`: what is left beside the weights, for all ranks of this machine.
ActivationCheckpointing fastest_plan_that_fits(const Recipe& recipe, int64_t bytes, const Architecture& architecture) {
  // The other plans hold on to the weights of every layer.
  if (recipe.trainer.placement != Placement::replicate) return ActivationCheckpointing::full;
  const auto element_bytes = static_cast<int64_t>(c10::elementSize(scalar_type(recipe.trainer.dtype)));
  for (const auto plan : {ActivationCheckpointing::none, ActivationCheckpointing::selective}) {
    const int64_t activations =
        recipe.trainer.global_batch * kept_activation_bytes(plan, architecture, recipe.adapter, recipe.eviction.window,
                                                            recipe.trainer.sequence_length, element_bytes);
    if (activations <= bytes) return plan;
  }
  return ActivationCheckpointing::full;
}

}  // namespace

void require_sequence_for_each_rank(const Recipe& recipe, int64_t num_ranks) {
  if (recipe.trainer.global_batch < num_ranks) {
    throw UserError("",
                    "trainer.global_batch (" + std::to_string(recipe.trainer.global_batch) + ") is less than the " +
                        std::to_string(num_ranks) + " ranks, each of which needs a sequence",
                    {"raise trainer.global_batch or start fewer ranks"});
  }
}

void require_gpu_for_each_rank(const Recipe& recipe, int64_t ranks_of_host, int64_t num_gpus) {
  if (recipe.trainer.placement != Placement::shard || ranks_of_host <= num_gpus) return;
  throw UserError("",
                  "trainer.placement is shard, which takes one rank a GPU, but this host has " +
                      std::to_string(ranks_of_host) + " ranks and " + std::to_string(num_gpus) + " GPUs",
                  {"start at most " + std::to_string(num_gpus) + " ranks here, or set trainer.placement=host"});
}

void settle_dtype(Recipe& recipe) {
  const bool cuda = recipe.trainer.device != ComputeDevice::cpu &&
                    device_named(recipe.trainer.device == ComputeDevice::cuda ? "cuda" : "auto").is_cuda();
  recipe.trainer.device = cuda ? ComputeDevice::cuda : ComputeDevice::cpu;
  if (recipe.trainer.dtype != ComputeDtype::automatic) return;
  recipe.trainer.dtype = cuda || cpu_computes_bfloat16() ? ComputeDtype::bfloat16 : ComputeDtype::float32;
}

namespace {

// Of the machine, or of its GPUs together: as many as there are ranks share it.
int64_t free_memory_bytes(const Recipe& recipe) {
  if (recipe.trainer.device != ComputeDevice::cuda) return available_memory_bytes();
  int64_t bytes = 0;
  for (at::DeviceIndex i = 0; i < at::detail::getCUDAHooks().getNumGPUs(); ++i) {
    bytes += static_cast<int64_t>(c10::getDeviceAllocator(at::kCUDA)->getMemoryInfo(i).first);
  }
  return bytes;
}

}  // namespace

void resolve_recipe(Recipe& recipe, const Architecture& architecture, int64_t num_ranks) {
  require_exportable(recipe, architecture);
  require_sequence_for_each_rank(recipe, num_ranks);
  settle_dtype(recipe);
  const int64_t limit =
      recipe.trainer.memory_limit_bytes >= 0 ? recipe.trainer.memory_limit_bytes : free_memory_bytes(recipe) / 5 * 4;
  const int64_t element_bytes = static_cast<int64_t>(c10::elementSize(scalar_type(recipe.trainer.dtype)));
  const int64_t weight_bytes = architecture.num_parameters() * element_bytes;
  const bool can_shard = recipe.trainer.device != ComputeDevice::cuda || !nccl_version().empty();
  if (recipe.trainer.placement == Placement::shard && num_ranks > 1 && !can_shard) {
    throw UserError("", "trainer.placement: shard needs NCCL between GPUs, and this build is without it",
                    {"configure and build where nccl.h is found (the PyPI wheel nvidia-nccl-cu13, or libnccl-dev)"});
  }
  if (recipe.trainer.placement == Placement::automatic) {
    const bool keeps_layers = recipe.trainer.activation_checkpointing == ActivationCheckpointing::none ||
                              recipe.trainer.activation_checkpointing == ActivationCheckpointing::selective;
    // A fifth of the limit stays for activations.
    recipe.trainer.placement = keeps_layers || num_ranks * weight_bytes <= limit / 5 * 4     ? Placement::replicate
                               : can_shard && num_ranks > 1 && weight_bytes <= limit / 5 * 4 ? Placement::shard
                                                                                             : Placement::host;
  }
  if (recipe.trainer.activation_checkpointing == ActivationCheckpointing::automatic) {
    recipe.trainer.activation_checkpointing =
        fastest_plan_that_fits(recipe, limit - num_ranks * weight_bytes, architecture);
  }
}

namespace {

void warn_of_choices(const Recipe& recipe, const Architecture& architecture) {
  if (recipe.trainer.device == ComputeDevice::cpu && recipe.trainer.dtype == ComputeDtype::bfloat16 &&
      !cpu_computes_bfloat16()) {
    std::fprintf(stderr, "warning: this processor has no bfloat16 instructions; float32 would be far faster\n");
  }
  if (recipe.trainer.sequence_length > architecture.max_positions) {
    std::fprintf(stderr, "warning: trainer.sequence_length %ld is beyond the model's max_position_embeddings %ld\n",
                 recipe.trainer.sequence_length, architecture.max_positions);
  }
}

// What all ranks train: rank 0 settles it, and holds the run directory from here on.
Recipe settled_recipe(Recipe recipe, const RunOptions& options, int64_t num_ranks, std::optional<RunLock>& lock) {
  if (fs::exists(options.run_dir) && !fs::is_directory(options.run_dir)) {
    throw UserError(options.run_dir, "is not a directory");
  }
  require_makeable_directory(options.run_dir);
  lock.emplace(options.run_dir);
  const bool exists = fs::exists(options.run_dir + "/recipe.yaml");
  if (exists && !options.resume) {
    throw UserError(options.run_dir, "already holds a run", {"--resume continues it; another --run-dir starts afresh"});
  }
  const Architecture architecture = read_architecture(recipe.model_path);
  if (exists) recipe = recipe_to_resume(options.run_dir, std::move(recipe));
  resolve_recipe(recipe, architecture, num_ranks);
  warn_of_choices(recipe, architecture);
  return recipe;
}

}  // namespace

void train(Recipe recipe, const RunOptions& options, RankGroup& ranks) {
  std::optional<RunLock> lock;
  if (ranks.speaks()) recipe = settled_recipe(std::move(recipe), options, ranks.size(), lock);
  const std::string settled =
      ranks.broadcast(ranks.speaks() ? dump_recipe(recipe) : std::string(), 0, "the recipe that rank 0 settles");
  if (!ranks.speaks()) recipe = parse_recipe("the settled recipe", settled);
  Run(std::move(recipe), options, ranks).execute();
}

}  // namespace dms
