#include "trainer/plan.h"

#include <algorithm>

#include "trainer/hardware.h"
#include "trainer/logit_tiles.h"

namespace dms {

namespace {

int64_t layer_numel(const Architecture& a) {
  const int64_t attention = 2 * (a.num_heads + a.num_kv_heads) * a.head_dim * a.hidden_size;
  return attention + 3 * a.hidden_size * a.intermediate_size + 2 * a.hidden_size;
}
int64_t embedding_numel(const Architecture& a) { return a.vocab_size * a.hidden_size; }

int64_t adapter_numel(const AdapterOptions& adapter, const Architecture& a) {
  int64_t per_layer = adapter.bias == AdapterBias::per_head ? a.num_kv_heads : 0;
  if (adapter.kind == AdapterKind::linear) {
    per_layer += (a.num_kv_heads + 1) * a.hidden_size;
  } else {
    per_layer += adapter.rank == 0 ? a.num_kv_heads * a.hidden_size : adapter.rank * (a.hidden_size + a.num_kv_heads);
  }
  return a.num_layers * per_layer;
}

// What one layer's backward pass of one sequence holds at its widest, beyond what was kept for it: the MLP's gradients,
// and whatever the plan computes again.
int64_t layer_backward_bytes(ActivationCheckpointing plan, const Architecture& a, int64_t num_tokens, int64_t window,
                             int64_t element_bytes) {
  const int64_t rows = std::max<int64_t>(0, num_tokens - window - 1);  // where the student differs from the teacher
  const int64_t mlp_tensors = plan == ActivationCheckpointing::none ? 3 : 5;
  int64_t bytes = rows * (mlp_tensors * a.intermediate_size + 5 * a.hidden_size) * element_bytes;
  if (plan == ActivationCheckpointing::full) {
    bytes += num_tokens * (7 * a.hidden_size + 6 * (a.num_heads + a.num_kv_heads) * a.head_dim) * element_bytes;
  }
  return bytes;
}

int64_t head_bytes(const Architecture& a, int64_t positions, int64_t element_bytes) {
  if (positions <= 0) return 0;
  const int64_t most = LogitTiles::max_positions(a.vocab_size);
  const int64_t chunk = (positions + (positions + most - 1) / most - 1) / ((positions + most - 1) / most);
  const int64_t logits = 2 * chunk * a.vocab_size * static_cast<int64_t>(sizeof(float));
  const int64_t states = 5 * positions * a.hidden_size * element_bytes;  // both models' normalised, and the gradient
  return logits + states;
}

RankBytes bytes_of(const Recipe& r, const Architecture& a, int64_t num_ranks) {
  const auto element_bytes = static_cast<int64_t>(c10::elementSize(scalar_type(r.trainer.dtype)));
  const int64_t num_tokens = r.trainer.sequence_length;
  const int64_t samples = (r.trainer.global_batch + num_ranks - 1) / num_ranks;
  const int64_t layer = layer_numel(a) * element_bytes, embedding = embedding_numel(a) * element_bytes;
  const int64_t all_weights = a.num_parameters() * element_bytes;

  RankBytes bytes;
  switch (r.trainer.placement) {
    case Placement::shard:
      bytes.weights = all_weights / num_ranks;
      bytes.buffers = layer + std::max(layer, embedding);  // the current station and the next
      break;
    case Placement::host:
      bytes.buffers = std::max(layer, embedding);
      break;
    default:
      bytes.weights = all_weights;
  }
  const ActivationCheckpointing plan = r.trainer.activation_checkpointing;
  const int64_t streams = 2 * samples * num_tokens * a.hidden_size * element_bytes;  // teacher's and student's
  const int64_t kept = samples * kept_activation_bytes(plan, a, num_tokens, element_bytes);
  const int64_t backward = layer_backward_bytes(plan, a, num_tokens, r.eviction.window, element_bytes);
  bytes.activations = kept + streams + backward;
  const int64_t adapter = adapter_numel(r.adapter, a) * static_cast<int64_t>(sizeof(float));
  bytes.adapters = adapter * (1 + samples + num_ranks);  // parameters, one sum of gradients a subtree, all ranks' sums
  bytes.optimizer = 2 * adapter;
  bytes.head = head_bytes(a, num_tokens - r.eviction.window - 1, element_bytes);
  bytes.total = bytes.weights + bytes.buffers + kept + streams + std::max(backward, bytes.head) + bytes.adapters +
                bytes.optimizer;
  return bytes;
}

bool fits(const Recipe& recipe, const Architecture& a, int64_t num_ranks, const DeviceRates& device) {
  return static_cast<double>(bytes_of(recipe, a, num_ranks).total + kProcessBytes) <= device.memory_bytes;
}

int64_t largest_sequence(Recipe recipe, const Architecture& a, int64_t num_ranks, const DeviceRates& device) {
  const auto fits_at = [&](int64_t num_tokens) {
    recipe.trainer.sequence_length = num_tokens;
    return fits(recipe, a, num_ranks, device);
  };
  int64_t unit = 64, low = 0;
  if (fits_at(1024)) unit = 1024;
  int64_t high = int64_t{1} << 24;
  while (high - low > unit) {
    const int64_t middle = (low + high) / 2 / unit * unit;
    (fits_at(middle) ? low : high) = middle;
  }
  return low;
}

std::vector<std::string> suggestions(const Recipe& recipe, const Architecture& a, int64_t num_ranks,
                                     const DeviceRates& device) {
  std::vector<std::string> found;
  const auto try_change = [&](const std::string& text, int64_t ranks, const auto& change) {
    Recipe changed = recipe;
    change(changed);
    if (fits(changed, a, ranks, device)) found.push_back(text);
  };
  const auto spare = [](Recipe& r) { r.trainer.activation_checkpointing = ActivationCheckpointing::full; };
  try_change("trainer.activation_checkpointing=full", num_ranks, spare);
  if (num_ranks > 1) {
    try_change("trainer.placement=shard", num_ranks, [&](Recipe& r) {
      spare(r);
      r.trainer.placement = Placement::shard;
    });
  }
  try_change("trainer.placement=host", num_ranks, [&](Recipe& r) {
    spare(r);
    r.trainer.placement = Placement::host;
  });
  try_change("trainer.global_batch=" + std::to_string(num_ranks) + ", one sequence a rank", num_ranks,
             [&](Recipe& r) { r.trainer.global_batch = num_ranks; });
  const int64_t sequence = largest_sequence(recipe, a, num_ranks, device);
  if (sequence > recipe.eviction.window + 1) {
    found.push_back("trainer.sequence_length=" + std::to_string(sequence));
  }
  return found;
}

// FLOPs that the step really executes: `full` runs the student forward a second time.
double executed_flops(const Recipe& r, const Architecture& a) {
  const double needed = needed_flops_per_sequence(a, r.trainer.sequence_length);
  return r.trainer.activation_checkpointing == ActivationCheckpointing::full ? needed * 4.0 / 3.0 : needed;
}

// Forward and backward each gather every layer once; nothing is sent back.
double gathered_bytes(const Recipe& r, const Architecture& a, int64_t num_ranks) {
  if (r.trainer.placement != Placement::shard) return 0.0;
  const auto element_bytes = static_cast<double>(c10::elementSize(scalar_type(r.trainer.dtype)));
  const double share = static_cast<double>(num_ranks - 1) / static_cast<double>(num_ranks);
  return (2.0 * static_cast<double>(a.num_layers * layer_numel(a)) + 2.0 * static_cast<double>(embedding_numel(a))) *
         element_bytes * share;
}

}  // namespace

const std::vector<DeviceRates>& published_devices() {
  constexpr double kAssumedEfficiency = 0.4;
  // Half of NVLink's bidirectional figure is what one GPU receives.
  static const std::vector<DeviceRates> devices = {
      {"h100", 989e12, kAssumedEfficiency, 80e9, 450e9, false, "NVIDIA H100 SXM data sheet, dense BF16"},
      {"h200", 989e12, kAssumedEfficiency, 141e9, 450e9, false, "NVIDIA H200 SXM data sheet, dense BF16"},
      {"a100", 312e12, kAssumedEfficiency, 80e9, 300e9, false, "NVIDIA A100 SXM 80 GB data sheet, dense BF16"},
  };
  return devices;
}

DeviceRates measure_this_machine(at::ScalarType dtype, int64_t num_ranks) {
  DeviceRates device;
  device.name = "this machine";
  device.gemm_flops_per_s = measure_gemm_flops_per_s(dtype) / static_cast<double>(num_ranks);
  device.efficiency = 0.65;  // of the GEMM rate, what steps at 1024 tokens reach
  device.memory_bytes = static_cast<double>(available_memory_bytes()) / static_cast<double>(num_ranks);
  device.link_bytes_per_s = 1e9;
  device.measured = true;
  device.source = "GEMM and free memory measured just now, shared by all ranks; 1 GB/s between processes assumed";
  return device;
}

Plan make_plan(const Recipe& recipe, const Architecture& a, int64_t num_ranks, const DeviceRates& device) {
  Plan plan;
  plan.per_rank = bytes_of(recipe, a, num_ranks);
  const double samples = static_cast<double>((recipe.trainer.global_batch + num_ranks - 1) / num_ranks);
  plan.compute_seconds = samples * executed_flops(recipe, a) / (device.gemm_flops_per_s * device.efficiency);
  plan.communication_seconds = gathered_bytes(recipe, a, num_ranks) / device.link_bytes_per_s;
  plan.step_seconds = std::max(plan.compute_seconds, plan.communication_seconds);  // one layer ahead
  plan.tokens =
      recipe.trainer.steps * recipe.trainer.global_batch * recipe.trainer.sequence_length + recipe.warm_start.tokens;
  // The warm start is forward passes of the teacher, a third of a step's work.
  const double warm_start_seconds = static_cast<double>(recipe.warm_start.tokens) /
                                    static_cast<double>(recipe.trainer.sequence_length) / 3.0 *
                                    needed_flops_per_sequence(a, recipe.trainer.sequence_length) /
                                    (device.gemm_flops_per_s * device.efficiency * static_cast<double>(num_ranks));
  plan.hours = (static_cast<double>(recipe.trainer.steps) * plan.step_seconds + warm_start_seconds) / 3600.0;
  plan.fits = fits(recipe, a, num_ranks, device);
  plan.largest_sequence = largest_sequence(recipe, a, num_ranks, device);
  if (!plan.fits) plan.suggestions = suggestions(recipe, a, num_ranks, device);
  return plan;
}

}  // namespace dms
