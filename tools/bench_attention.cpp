#include "tools/bench_attention.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>
#include <random>

#include "checkpoints/model_dir.h"
#include "data/sample_order.h"
#include "model/attention.h"
#include "model/block.h"
#include "model/decoder.h"
#include "model/noise.h"
#include "model/survivors.h"
#include "recipes/user_error.h"
#include "tools/bench_gemm.h"
#include "trainer/progress_line.h"
#include "trainer/trained_adapter.h"

namespace dms {

namespace {

constexpr int64_t kLongestDense = 4096;
// Relaxed decisions past any truncation: survivors of the built-in profile are exactly those that it names.
constexpr double kSoftestBias = -6.0;

at::Tensor random_normal(at::IntArrayRef shape, at::ScalarType dtype, uint64_t seed) {
  return at::randn(shape, at::detail::createCPUGenerator(seed), at::TensorOptions().dtype(at::kFloat)).to(dtype);
}

// Biases of one layer's heads after the built-in profile.  Quantiles follow the golden ratio, so that any run of heads
// covers them evenly and every layer is ragged.
at::Tensor profile_bias_BGT(int64_t layer, int64_t num_kv_heads, int64_t num_tokens) {
  constexpr double kGoldenRatio = 0.6180339887498949;
  at::Tensor bias_BGT = at::zeros({1, num_kv_heads, num_tokens}, at::kFloat);
  auto bias = bias_BGT.accessor<float, 3>();
  for (int64_t g = 0; g < num_kv_heads; ++g) {
    const double head = static_cast<double>(layer * num_kv_heads + g);
    const double u = std::fmod((head + 0.5) * kGoldenRatio, 1.0);
    const double kept = 0.94 * std::pow(u, 6.5), soft = 0.9 * u * (1.0 - u);
    std::mt19937_64 random(static_cast<uint64_t>(head));
    for (int64_t t = 0; t < num_tokens; ++t) {
      const double draw = static_cast<double>(random() >> 11) * 0x1p-53;
      if (draw >= kept + soft) {
        bias[0][g][t] = static_cast<float>(kGoneBias);
      } else if (draw >= kept) {
        bias[0][g][t] = static_cast<float>(kSoftestBias * (draw - kept) / soft);
      }
    }
  }
  return bias_BGT;
}

AttentionTensors leaves(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias) {
  const auto leaf = [](const at::Tensor& x) { return x.detach().set_requires_grad(true); };
  return {leaf(q), leaf(k), leaf(v), leaf(bias)};
}

std::vector<AttentionTensors> profile_layers(const AttentionBenchmark& b, at::ScalarType dtype) {
  const at::Tensor q_BHTd = random_normal({1, b.num_heads, b.sequence_length, b.head_dim}, dtype, 1);
  const at::Tensor k_BGTd = random_normal({1, b.num_kv_heads, b.sequence_length, b.head_dim}, dtype, 2);
  const at::Tensor v_BGTd = random_normal({1, b.num_kv_heads, b.sequence_length, b.head_dim}, dtype, 3);
  std::vector<AttentionTensors> layers;
  for (int64_t layer = 0; layer < b.num_layers; ++layer) {
    layers.push_back(leaves(q_BHTd, k_BGTd, v_BGTd, profile_bias_BGT(layer, b.num_kv_heads, b.sequence_length)));
  }
  return layers;
}

std::vector<int32_t> benchmark_tokens(const AttentionBenchmark& b, int64_t vocab_size) {
  if (!b.data.empty()) {
    return SampleOrder({TokenFile::open(b.data)}, b.sequence_length, 0).sample(0).tokens;
  }
  std::mt19937_64 random(0);
  std::vector<int32_t> tokens;
  for (int64_t t = 0; t < b.sequence_length; ++t) {
    tokens.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_size)));
  }
  return tokens;
}

// The model's own layers on one sequence, along the teacher's residual stream, under the trained evictor.
std::vector<AttentionTensors> model_layers(const AttentionBenchmark& b, at::ScalarType dtype) {
  const at::NoGradGuard no_grad;
  const auto source = open_weights(b.model, dtype);
  const Architecture& architecture = source->architecture();
  TrainedAdapter trained = load_trained_adapter(b.adapters, *source, base_model_hash(b.model));
  trained.eviction.window = b.window;
  const RopeTables rope = make_rope_tables(architecture, b.sequence_length, source->embedding().options());
  const DocumentOffsets documents{0, b.sequence_length};
  at::Tensor x_TD = embed_tokens(*source, benchmark_tokens(b, architecture.vocab_size));
  std::vector<AttentionTensors> layers;
  for (int64_t layer = 0; layer < architecture.num_layers; ++layer) {
    const LayerWeights weights = source->layer(layer);
    const at::Tensor normed_TD = rms_norm(x_TD, weights.input_norm, architecture.rms_norm_eps);
    const at::Tensor noise_GT = logistic_noise_GT(0, 0, 0, layer, architecture.num_kv_heads, b.sequence_length);
    const AdapterReading reading = trained.adapter->read(layer, x_TD, normed_TD);
    const Relaxation relaxation = relax(reading.logit_GT, noise_GT, trained.eviction, documents);
    const AttentionInputs in = attention_inputs(architecture, weights, normed_TD, rope, reading.query);
    layers.push_back(leaves(in.q_BHTd, in.k_BGTd, in.v_BGTd, relaxation.bias_GT.unsqueeze(0)));
    x_TD = teacher_layer(architecture, weights, x_TD, {rope, documents});
  }
  return layers;
}

// Attention by a mask of [T, T] a KV head, as one would write it without this program.
at::Tensor masked_attention(const AttentionTensors& in, int64_t window) {
  const int64_t num_tokens = in.q_BHTd.size(2), repeats = in.q_BHTd.size(1) / in.k_BGTd.size(1);
  const at::Tensor position = at::arange(num_tokens, in.q_BHTd.options().dtype(at::kLong).requires_grad(false));
  const at::Tensor distance = position.unsqueeze(1) - position.unsqueeze(0);
  const at::Tensor mask_BGTT =
      at::where(distance > window, in.bias_BGT.unsqueeze(2), at::zeros({}, in.bias_BGT.options()))
          .masked_fill(distance < 0, -std::numeric_limits<double>::infinity());
  return at::scaled_dot_product_attention(in.q_BHTd, in.k_BGTd.repeat_interleave(repeats, 1),
                                          in.v_BGTd.repeat_interleave(repeats, 1),
                                          mask_BGTT.repeat_interleave(repeats, 1).to(in.q_BHTd.scalar_type()));
}

struct Seconds {
  double forward = 0.0, backward = 0.0;
};

// `attention(in)` recorded by autograd, and its gradients of q, k, v and bias.
template <class Attention>
Seconds time_recorded(const AttentionTensors& in, const at::Tensor& dout, const Attention& attention) {
  const at::AutoGradMode with_grad(true);
  at::Tensor out;
  Seconds seconds;
  seconds.forward = seconds_of(in.q_BHTd.device(), [&] { out = attention(in); });
  seconds.backward = seconds_of(in.q_BHTd.device(), [&] {
    torch::autograd::grad({out}, {in.q_BHTd, in.k_BGTd, in.v_BGTd, in.bias_BGT}, {dout}, std::nullopt, false,
                          /*allow_unused=*/true);  // the bias, by plain causal attention
  });
  return seconds;
}

// As the library does it, with its own backward.
at::Tensor library_causal_attention(const AttentionTensors& in) {
  return at::scaled_dot_product_attention(in.q_BHTd, in.k_BGTd, in.v_BGTd, {}, 0.0, /*is_causal=*/true, std::nullopt,
                                          /*enable_gqa=*/true);
}

AttentionFigures::Passes passes_of(const std::vector<Seconds>& samples) {
  std::vector<double> forward, backward;
  for (const Seconds& sample : samples) {
    forward.push_back(sample.forward);
    backward.push_back(sample.backward);
  }
  return {timing_of(std::move(forward)), timing_of(std::move(backward))};
}

}  // namespace

AttentionFigures bench_attention(const AttentionBenchmark& b) {
  if (b.window + 1 >= b.sequence_length) {
    throw UserError("--window", std::to_string(b.window) + " leaves no key to evict in a sequence of --seq " +
                                    std::to_string(b.sequence_length));
  }
  if (b.num_kv_heads > b.num_heads || b.num_heads % b.num_kv_heads != 0) {
    throw UserError("--kv-heads",
                    std::to_string(b.num_kv_heads) + " does not divide --heads " + std::to_string(b.num_heads));
  }
  const at::Device device = benchmark_device(b.device);
  const at::ScalarType dtype = resolved_scalar_type(b.dtype, device);
  std::vector<AttentionTensors> layers = b.model.empty() ? profile_layers(b, dtype) : model_layers(b, dtype);
  for (AttentionTensors& in : layers) {
    in = leaves(in.q_BHTd.to(device), in.k_BGTd.to(device), in.v_BGTd.to(device), in.bias_BGT.to(device));
  }
  const AttentionTensors& first = layers.front();
  const int64_t num_heads = first.q_BHTd.size(1), num_kv_heads = first.k_BGTd.size(1), head_dim = first.q_BHTd.size(3);
  const at::Tensor dout = random_normal(first.q_BHTd.sizes(), dtype, 4).to(device);
  const FlashKernel& kernel = flash_kernel(first.q_BHTd.device());

  AttentionFigures figures;
  figures.num_layers = static_cast<int64_t>(layers.size());
  figures.dtype = dtype == at::kBFloat16 ? "bfloat16" : "float32";
  figures.threads = at::get_num_threads();
  const double flops_per_pair = 4.0 * static_cast<double>(head_dim * num_heads / num_kv_heads);
  const double tokens = static_cast<double>(b.sequence_length), kv_heads = static_cast<double>(num_kv_heads);
  figures.causal_flops = flops_per_pair * kv_heads * tokens * (tokens + 1.0) / 2.0;
  std::vector<bool> takes_sparse;
  for (const AttentionTensors& in : layers) {
    const at::Tensor gone_GT = gone_keys(in.bias_BGT).select(0, 0).to(at::kCPU);
    const Survivors survivors(gone_GT, b.window, kernel.sparse_block_rows());
    const double prefix = static_cast<double>(b.window + 1);
    figures.sparse_flops += flops_per_pair *
                            (static_cast<double>(survivors.sparse_pairs()) + kv_heads * prefix * (prefix + 1.0) / 2.0) /
                            static_cast<double>(layers.size());
    const at::Tensor far_bias_GT = in.bias_BGT.detach().select(0, 0).slice(1, 0, survivors.num_rows());
    const double share = 1.0 / static_cast<double>(far_bias_GT.numel() * figures.num_layers);
    const double num_kept = static_cast<double>((far_bias_GT == 0.0).sum().item<int64_t>());
    figures.kept_share += num_kept * share;
    for (int64_t g = 0; g < num_kv_heads; ++g) figures.soft_share += static_cast<double>(survivors.num_keys(g)) * share;
    figures.soft_share -= num_kept * share;
    takes_sparse.push_back(sparse_is_cheaper(survivors));
    figures.num_sparse_layers += takes_sparse.back() ? 1 : 0;
  }

  const auto delayed = [&](AttentionPath path) {
    return [&b, path](const AttentionTensors& in) {
      return delayed_eviction_attention(in.q_BHTd, in.k_BGTd, in.v_BGTd, in.bias_BGT, b.window, {0, in.q_BHTd.size(2)},
                                        path);
    };
  };
  std::vector<Seconds> causal, two_part, sparse, dense;
  std::vector<double> student;  // of each repeat, the mean over layers
  ProgressLine progress;
  for (int64_t repeat = 0; repeat <= b.repeats; ++repeat) {
    progress.update("repeat " + std::to_string(repeat) + "/" + std::to_string(b.repeats), repeat + 1, b.repeats + 1);
    causal.push_back(time_recorded(first, dout, library_causal_attention));
    two_part.push_back(time_recorded(first, dout, delayed(AttentionPath::dense)));
    if (b.sequence_length <= kLongestDense) {
      dense.push_back(
          time_recorded(first, dout, [&](const AttentionTensors& in) { return masked_attention(in, b.window); }));
    }
    Seconds mean;
    double student_seconds = 0.0;
    for (size_t layer = 0; layer < layers.size(); ++layer) {
      const Seconds seconds = time_recorded(layers[layer], dout, delayed(AttentionPath::sparse));
      mean.forward += seconds.forward / static_cast<double>(layers.size());
      mean.backward += seconds.backward / static_cast<double>(layers.size());
      const Seconds& taken = takes_sparse[layer] ? seconds : two_part.back();
      student_seconds += (taken.forward + taken.backward) / static_cast<double>(layers.size());
    }
    sparse.push_back(mean);
    student.push_back(student_seconds);
  }
  // The first round touched the memory.
  for (std::vector<Seconds>* samples : {&causal, &two_part, &sparse, &dense}) {
    if (!samples->empty()) samples->erase(samples->begin());
  }
  student.erase(student.begin());
  figures.causal = passes_of(causal);
  figures.two_part = passes_of(two_part);
  figures.sparse = passes_of(sparse);
  if (!dense.empty()) figures.dense = passes_of(dense);
  figures.student_over_causal = timing_of(student).median / figures.causal.seconds();
  return figures;
}

}  // namespace dms
