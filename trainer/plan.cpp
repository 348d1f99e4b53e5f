#include "trainer/plan.h"

#include <algorithm>

#include "model/block.h"
#include "trainer/hardware.h"
#include "trainer/logit_tiles.h"
#include "trainer/run.h"
#include "trainer/warm_start.h"

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

// Everything that one plan multiplies.
struct Sizes {
  Sizes(const Recipe& r, const Architecture& architecture, int64_t num_ranks)
      : a(architecture),
        recipe(r),
        ranks(num_ranks),
        element(static_cast<int64_t>(c10::elementSize(scalar_type(r.trainer.dtype)))),
        tokens(r.trainer.sequence_length),
        rows(num_student_rows(r.adapter, r.eviction.window, r.trainer.sequence_length)),
        sequences((r.trainer.global_batch + num_ranks - 1) / num_ranks),
        queries(architecture.num_heads * architecture.head_dim),
        keys(architecture.num_kv_heads * architecture.head_dim) {}
  const Architecture& a;
  const Recipe& recipe;
  const int64_t ranks, element;
  const int64_t tokens, rows;   // of a sequence; those in which the student can differ from the teacher
  const int64_t sequences;      // of a step, on the rank that has most
  const int64_t queries, keys;  // H d, G d
};

// What the teacher's forward pass of one layer and sequence holds at its widest, beside the residual streams: all along
// the normalised input, q, k and v.  In a piece of the MLP, also attention's output, the stream between attention and MLP,
// and of the piece the MLP's three inner tensors and its output.  In attention, the queries in tiles' order, their
// output, and keys and values in tiles' order.
int64_t layer_forward_bytes(const Sizes& s) {
  const int64_t mlp = s.tokens * (s.a.hidden_size + s.queries) +
                      largest_mlp_piece(s.tokens) * (3 * s.a.intermediate_size + s.a.hidden_size);
  const int64_t attention = s.tokens * 2 * (s.queries + s.keys);
  return (s.tokens * (s.a.hidden_size + s.queries + 2 * s.keys) + std::max(mlp, attention)) * s.element;
}

// What the backward pass of one layer and sequence holds at its widest, beyond what was kept for it and the gradient that
// comes in.  First the MLP: the gradient of its input, and of a piece of the rows three inner gradients (and the inner
// tensors, where they are computed again) and the gradient of its norm's output; then attention.
int64_t layer_backward_bytes(const Sizes& s) {
  const ActivationCheckpointing plan = s.recipe.trainer.activation_checkpointing;
  const int64_t window = s.recipe.eviction.window;
  const int64_t mlp_kept = plan == ActivationCheckpointing::none ? 2 : 0;
  const int64_t mlp = (s.rows * s.a.hidden_size +
                       largest_mlp_piece(s.rows) * ((5 - mlp_kept) * s.a.intermediate_size + s.a.hidden_size)) *
                      s.element;
  // The gradients of attention's output, of the student's rows and with zeros for the others, and of the stream; q in
  // tiles' order, its gradient and a product; k in both of tiles' orders and v in one, gathered ones too, four partial
  // sums of their gradients, and the gradients.  What the MLP kept is released by then.
  const double gathered =
      s.recipe.eviction.attention == AttentionPath::dense ? 0.0 : std::min(1.0, 1.0 / s.recipe.compression.final);
  const int64_t attention =
      s.rows * (s.queries - mlp_kept * s.a.intermediate_size) * s.element +
      s.tokens * (3 * s.queries + 13 * s.keys + static_cast<int64_t>(11.0 * gathered * static_cast<double>(s.keys))) *
          s.element;
  const int64_t computed_again = plan == ActivationCheckpointing::full
                                     ? recorded_layer_bytes(s.a, s.recipe.adapter, window, s.tokens, s.element)
                                     : 0;
  return computed_again + std::max(mlp, attention);
}

// Logits of a chunk; of each sequence on its way through the head both models' normalised states, what the student's
// norm keeps, and the gradient.
int64_t head_bytes(const Sizes& s) {
  if (s.rows <= 0) return 0;
  constexpr int64_t kFloatBytes = sizeof(float);
  const int64_t most = LogitTiles::max_positions(s.a.vocab_size);
  const int64_t chunks = (s.rows + most - 1) / most, chunk = (s.rows + chunks - 1) / chunks;
  const int64_t logits = chunk * (2 * s.a.vocab_size + kVocabularyTile) * kFloatBytes;
  const int64_t stacked = 2 * chunk * s.a.hidden_size * s.element;
  const int64_t states = 4 * s.rows * s.a.hidden_size * s.element;
  if (s.recipe.trainer.placement != Placement::shard) return logits + stacked + states;
  // All sequences go together: as many chunks as have room keep their logits; of each tile and position there are two
  // maxima, two sums and a part of the KL.
  const int64_t kept_chunks = std::min(s.sequences * chunks, most / chunk);
  const int64_t one_tile = s.sequences * chunks > kept_chunks ? 2 * chunk * kVocabularyTile * kFloatBytes : 0;
  const int64_t tiles = (s.a.vocab_size + kVocabularyTile - 1) / kVocabularyTile;
  return kept_chunks * logits + one_tile + stacked + s.sequences * (states + 5 * tiles * s.rows * kFloatBytes);
}

// The warm start: the streams of this rank's sequences; one layer's features of them, or of the sample of their rows that
// stands for them; those of all ranks on the rank that fits them, and again as weighted equations when they are a sample;
// every layer's scores.  A CPU's allocator keeps what observing a sequence takes, and the fit's smaller tensors find room
// there.
int64_t warm_start_bytes(const Sizes& s) {
  if (s.recipe.warm_start.tokens == 0) return 0;
  constexpr int64_t kFloatBytes = sizeof(float);
  const int64_t sequences = s.recipe.warm_start.tokens / s.tokens;
  const int64_t mine = (sequences + s.ranks - 1) / s.ranks;
  const int64_t streams = mine * s.tokens * s.a.hidden_size * s.element;
  const int64_t keys = std::max<int64_t>(0, s.tokens - s.recipe.eviction.window - fewest_far_queries(s.tokens));
  const int64_t row = s.a.hidden_size * kFloatBytes;
  const int64_t held = std::min(sequences * keys, s.recipe.warm_start.fit_rows);
  const bool thinned = held < sequences * keys;
  const int64_t mine_held = sequences == 0 ? 0 : held * mine / sequences;
  // Importance of one sequence, between attention and MLP: seven float32 tensors a head, three blocks of [128 queries,
  // keys], beside the normalised input, q, k, v and attention's output.
  constexpr int64_t kQueryBlock = 128;
  const int64_t importance =
      s.tokens * (7 * s.queries + 3 * s.a.num_heads * std::min(kQueryBlock, s.tokens)) * kFloatBytes;
  const int64_t attended = s.tokens * (s.a.hidden_size + 2 * s.queries + 2 * s.keys) * s.element;
  const int64_t observing =
      (mine_held + (thinned ? keys : 0)) * row + std::max(attended + importance, layer_forward_bytes(s));
  const int64_t fitting = ((s.ranks > 1 ? held : 0) + (thinned ? held : 0)) * row;
  return streams + observing + fitting + held * s.a.num_layers * s.a.num_kv_heads * kFloatBytes;
}

// Of LibTorch and its libraries, what a process touches with its first forward and backward pass: measured
// (tools/check_plan.py).
constexpr int64_t kTouchedByFirstStep = int64_t{13} << 20;

RankBytes bytes_of(const Recipe& r, const Architecture& a, int64_t num_ranks, const DeviceRates& device) {
  const Sizes s(r, a, num_ranks);
  const int64_t layer = layer_numel(a) * s.element, embedding = embedding_numel(a) * s.element;
  const int64_t all_weights = a.num_parameters() * s.element;

  RankBytes bytes;
  int64_t whole_head = 0;  // there only while logits are computed
  switch (r.trainer.placement) {
    case Placement::shard:
      bytes.weights = all_weights / num_ranks;
      // The current station and the next: a layer, or a slice of the vocabulary.
      bytes.buffers = 2 * std::max(layer, std::min(embedding, kVocabularyTile * a.hidden_size * s.element));
      break;
    case Placement::host:
      if (device.host_bytes_per_s > 0.0) {  // model/streamed_weights.h
        bytes.weights = a.tied_embeddings ? embedding : 2 * embedding;
        bytes.buffers = 2 * layer;
      } else {
        bytes.buffers = layer;  // what a layer leaves goes when the next one comes
        whole_head = embedding;
      }
      break;
    default:
      bytes.weights = all_weights;
  }
  bytes.buffers += 2 * s.tokens * a.head_dim * s.element;  // the rotary tables
  const int64_t stream = s.sequences * s.tokens * a.hidden_size * s.element;
  int64_t kept = s.sequences * kept_activation_bytes(r.trainer.activation_checkpointing, a, r.adapter,
                                                     r.eviction.window, s.tokens, s.element);
  // Layers' inputs are kept among temporaries of nearly their size: a sixteenth as much is lost to a CPU's allocator
  // between them (measured: tools/check_plan.py).
  const bool on_cpu = device.host_bytes_per_s == 0.0;
  if (on_cpu && r.trainer.activation_checkpointing == ActivationCheckpointing::full) kept += kept / 16;
  const int64_t adapter = adapter_numel(r.adapter, a) * static_cast<int64_t>(sizeof(float));
  bytes.adapters = adapter * (1 + s.sequences + num_ranks);  // parameters, a sum a subtree, all ranks' sums
  bytes.optimizer = 2 * adapter;
  // The last layer's forward pass with both models' streams, then the head, then the last layer's backward pass with the
  // gradient of the student's.
  const int64_t forward = 2 * stream + layer_forward_bytes(s);
  const int64_t backward = s.sequences * s.rows * a.hidden_size * s.element + layer_backward_bytes(s);
  bytes.activations = kept + std::max(forward, backward);
  bytes.head = head_bytes(s) + whole_head;
  bytes.warm_start = warm_start_bytes(s);
  // Without a warm start GEMMs are measured before anything has run.
  const int64_t measuring = gemm_measurement_bytes(s.element) - (bytes.warm_start > 0 ? 0 : kTouchedByFirstStep);
  bytes.total = bytes.weights + bytes.buffers + bytes.adapters + bytes.optimizer +
                std::max({bytes.activations, kept + 2 * stream + bytes.head, bytes.warm_start, measuring});
  return bytes;
}

bool fits(const Recipe& recipe, const Architecture& a, int64_t num_ranks, const DeviceRates& device) {
  return static_cast<double>(bytes_of(recipe, a, num_ranks, device).total + device.process_bytes) <=
         device.memory_bytes;
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
    const bool would_fit = fits(changed, a, ranks, device);
    if (would_fit) found.push_back(text);
    return would_fit;
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
  for (int64_t batch = (recipe.trainer.global_batch - 1) / num_ranks * num_ranks; batch > 0; batch -= num_ranks) {
    if (try_change("trainer.global_batch=" + std::to_string(batch), num_ranks,
                   [&](Recipe& r) { r.trainer.global_batch = batch; })) {
      break;
    }
  }
  const int64_t sequence = largest_sequence(recipe, a, num_ranks, device);
  if (sequence > recipe.eviction.window + 1) {
    found.push_back("trainer.sequence_length=" + std::to_string(sequence));
  }
  return found;
}

// FLOPs that the step executes: `full` runs nearly all of the student forward a second time.
double executed_flops(const Recipe& r, const Architecture& a) {
  const double needed = needed_flops_per_sequence(a, r.trainer.sequence_length);
  return r.trainer.activation_checkpointing == ActivationCheckpointing::full ? needed * 4.0 / 3.0 : needed;
}

// A step goes up the layers and down again.  Shards: it gathers every layer twice, the embedding once and the head twice;
// nothing is sent back.  Out of the host's memory: the two layers where it turns come once.
double communication_seconds(const Recipe& r, const Architecture& a, int64_t num_ranks, const DeviceRates& device) {
  const auto element_bytes = static_cast<double>(c10::elementSize(scalar_type(r.trainer.dtype)));
  const auto layer_bytes = static_cast<double>(layer_numel(a)) * element_bytes;
  const auto num_layers = static_cast<double>(a.num_layers);
  if (r.trainer.placement == Placement::shard) {
    const double share = static_cast<double>(num_ranks - 1) / static_cast<double>(num_ranks);
    const double embedding_bytes = static_cast<double>(embedding_numel(a)) * element_bytes;
    return (2.0 * num_layers * layer_bytes + 3.0 * embedding_bytes) * share / device.link_bytes_per_s;
  }
  if (r.trainer.placement == Placement::host && device.host_bytes_per_s > 0.0) {
    return 2.0 * (num_layers - 1.0) * layer_bytes / device.host_bytes_per_s;
  }
  return 0.0;
}

}  // namespace

const std::vector<DeviceRates>& published_devices() {
  constexpr double kAssumedEfficiency = 0.4;
  constexpr int64_t kContext = int64_t{1} << 30;  // CUDA's, with the libraries' workspaces: assumed
  // Half of NVLink's and of PCIe's bidirectional figures is what one GPU receives.
  static const std::vector<DeviceRates> devices = {
      {"h100", 989e12, kAssumedEfficiency, 80e9, kContext, 450e9, 64e9, false,
       "NVIDIA H100 SXM data sheet, dense BF16"},
      {"h200", 989e12, kAssumedEfficiency, 141e9, kContext, 450e9, 64e9, false,
       "NVIDIA H200 SXM data sheet, dense BF16"},
      {"a100", 312e12, kAssumedEfficiency, 80e9, kContext, 300e9, 32e9, false,
       "NVIDIA A100 SXM 80 GB data sheet, dense BF16"},
  };
  return devices;
}

// Of LibTorch and its libraries, what a training run touches and a process that only plans does not: measured
// (tools/check_plan.py).
constexpr int64_t kTouchedByTraining = int64_t{33} << 20;

DeviceRates measure_this_machine(at::ScalarType dtype, int64_t num_ranks) {
  DeviceRates device;
  device.name = "this machine";
  device.process_bytes = resident_memory_bytes() + kTouchedByTraining;
  device.gemm_flops_per_s = measure_gemm_flops_per_s(dtype) / static_cast<double>(num_ranks);
  device.efficiency = 0.65;  // of the GEMM rate, what steps at 1024 tokens reach
  device.memory_bytes = static_cast<double>(available_memory_bytes()) / static_cast<double>(num_ranks);
  device.link_bytes_per_s = 1e9;
  device.measured = true;
  device.source = "GEMM and free memory measured just now, shared by all ranks; 1 GB/s between processes assumed";
  return device;
}

void settle_for_device(Recipe& recipe, const Architecture& architecture, int64_t num_ranks, const DeviceRates& device) {
  const int64_t given = recipe.trainer.memory_limit_bytes;
  if (given < 0) {
    recipe.trainer.memory_limit_bytes =
        static_cast<int64_t>(device.memory_bytes * 0.8 * static_cast<double>(num_ranks));
  }
  resolve_recipe(recipe, architecture, num_ranks);
  recipe.trainer.memory_limit_bytes = given;
}

Plan make_plan(const Recipe& recipe, const Architecture& a, int64_t num_ranks, const DeviceRates& device) {
  Plan plan;
  plan.per_rank = bytes_of(recipe, a, num_ranks, device);
  const double samples = static_cast<double>((recipe.trainer.global_batch + num_ranks - 1) / num_ranks);
  plan.compute_seconds = samples * executed_flops(recipe, a) / (device.gemm_flops_per_s * device.efficiency);
  plan.communication_seconds = communication_seconds(recipe, a, num_ranks, device);
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
