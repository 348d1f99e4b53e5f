#include "model/attention.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <string>

#include "model/attention_reference.h"
#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

constexpr int64_t kWindow = 16;

enum class Keys { kept, gone, soft, mixed, sink, ragged };

struct Shape {
  int64_t B = 1, G = 2, R = 2, T = 67, d = 8, window = kWindow;
  DocumentOffsets documents = {};  // empty: one document

  DocumentOffsets offsets() const { return documents.empty() ? DocumentOffsets{0, T} : documents; }
};

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  out << "B " << s.B << " G " << s.G << " R " << s.R << " T " << s.T << " d " << s.d << " window " << s.window
      << " documents";
  for (int64_t offset : s.offsets()) out << " " << offset;
  return out;
}

struct Inputs {
  at::Tensor q, k, v, bias, dout;

  Inputs to(at::ScalarType dtype) const {
    const auto leaf = [](const at::Tensor& x) { return x.clone().set_requires_grad(true); };
    // The bias stays float32 beside low-precision activations, as in the training step.
    const at::ScalarType bias_dtype = dtype == at::kDouble ? at::kDouble : at::kFloat;
    return {leaf(q.to(dtype)), leaf(k.to(dtype)), leaf(v.to(dtype)), leaf(bias.to(bias_dtype)), dout.to(dtype)};
  }
  Inputs on(at::DeviceType device) const {
    if (device == at::kCPU) return *this;
    const auto leaf = [&](const at::Tensor& x) { return x.detach().to(device).set_requires_grad(true); };
    return {leaf(q), leaf(k), leaf(v), leaf(bias), dout.to(device)};
  }
};

Inputs make_inputs(const Shape& s, Keys keys) {
  Inputs in{seeded_normal({s.B, s.G * s.R, s.T, s.d}, 1), seeded_normal({s.B, s.G, s.T, s.d}, 2),
            seeded_normal({s.B, s.G, s.T, s.d}, 3), at::zeros({s.B, s.G, s.T}, at::kDouble),
            seeded_normal({s.B, s.G * s.R, s.T, s.d}, 5)};
  const at::Tensor z = 6.0 * seeded_normal({s.B, s.G, s.T}, 4);
  if (keys == Keys::gone) in.bias.fill_(kGoneBias);
  if (keys == Keys::soft) in.bias = at::log_sigmoid(-z);
  if (keys == Keys::mixed || keys == Keys::sink) {
    in.bias = at::log_sigmoid(-z).masked_fill(z < -3.0, 0.0).masked_fill(z > 3.0, kGoneBias);
  }
  if (keys == Keys::ragged) {
    // Head 0 keeps everything, head 1 nothing, the others a tenth in one stretch and a few soft keys.
    in.bias.fill_(kGoneBias).select(1, 0).zero_();
    if (s.G > 2) {
      at::Tensor others = in.bias.slice(1, 2);
      others.slice(2, s.T / 3, s.T / 3 + s.T / 10 + 1).zero_();
      others.slice(2, 0, s.T, 7).fill_(-2.5);
    }
  }
  if (keys == Keys::sink) {
    // Key 0 scores 30 above the others with every other query, and is far for most of them.  (With every query, all
    // gradients would be rounding errors: nothing but key 0 would count.)
    in.q.select(3, 0).zero_();
    in.q.select(3, 0).slice(2, 0, s.T, 2).fill_(std::sqrt(static_cast<double>(s.d)));
    in.k.select(3, 0).zero_();
    in.k.select(3, 0).select(2, 0).fill_(30.0);
    in.bias.select(2, 0).fill_(-29.3);  // leaves it about the weight of another key; no bfloat16 number
  }
  return in;
}

struct Outputs {
  at::Tensor out, dq, dk, dv, dbias;
};

template <class Attention>
Outputs run(const Attention& attention, const Inputs& in, const Shape& s) {
  const at::AutoGradMode with_grad(true);
  const at::Tensor out = attention(in.q, in.k, in.v, in.bias, s.window, s.offsets());
  const auto gradients = torch::autograd::grad({out}, {in.q, in.k, in.v, in.bias}, {in.dout.to(out.scalar_type())});
  return {out.detach(), gradients[0], gradients[1], gradients[2], gradients[3]};
}

Outputs run(AttentionPath path, const Inputs& in, const Shape& s) {
  const auto attention = [path](const auto&... arguments) { return delayed_eviction_attention(arguments..., path); };
  return run(attention, in, s);
}

// Where the tests run: every kernel test on the CPU, and on the GPU where there is one.  `exact`: the dtypes that must
// agree with the reference to rounding, with the largest error allowed.  (The GPU's flash kernels take bfloat16 only.)
struct Device {
  at::DeviceType type;
  std::vector<std::pair<at::ScalarType, double>> exact;
};

std::ostream& operator<<(std::ostream& out, const Device& device) { return out << at::DeviceTypeName(device.type); }

// bfloat16 inputs are exact in the reference; what remains is the rounding of probabilities (relative 2^-9), of parts
// before the merge and of the result.
constexpr double kBfloat16Epsilon = 0x1p-8;

Device cpu() { return {at::kCPU, {{at::kDouble, 1e-12}, {at::kFloat, 5e-6}}}; }
Device cuda() { return {at::kCUDA, {{at::kBFloat16, 4.0 * kBfloat16Epsilon}}}; }

std::vector<Device> present_gpus() { return at::hasCUDA() ? std::vector<Device>{cuda()} : std::vector<Device>{}; }

class DelayedEviction : public ::testing::TestWithParam<Device> {
 protected:
  void expect_exact(const Shape& s, Keys keys) const {
    for (AttentionPath path : {AttentionPath::dense, AttentionPath::sparse}) {
      for (const auto& [dtype, tolerance] : GetParam().exact) expect_exact(s, keys, path, dtype, tolerance);
    }
  }

  Outputs run_here(AttentionPath path, const Inputs& in, const Shape& s) const {
    return run(path, in.on(GetParam().type), s);
  }

 private:
  void expect_exact(const Shape& s, Keys keys, AttentionPath path, at::ScalarType dtype, double tolerance) const {
    SCOPED_TRACE(::testing::Message() << s << " keys " << static_cast<int>(keys) << " path " << static_cast<int>(path)
                                      << " " << at::toString(dtype));
    const Inputs in = make_inputs(s, keys).to(dtype);
    const Outputs fast = run_here(path, in, s);
    const Outputs dense = run(dense_delayed_eviction_attention, in, s);
    EXPECT_EQ(fast.out.scalar_type(), dtype);
    EXPECT_TRUE(is_near(fast.out, dense.out, tolerance)) << "output";
    if (s.T == 1) {
      // One key: no score matters, the gradients are zero, and what is left is rounding of order-1 numbers.
      EXPECT_LE(fast.dq.abs().max().item<double>(), tolerance) << "gradient of q";
      EXPECT_LE(fast.dk.abs().max().item<double>(), tolerance) << "gradient of k";
    } else {
      EXPECT_TRUE(is_near(fast.dq, dense.dq, tolerance)) << "gradient of q";
      EXPECT_TRUE(is_near(fast.dk, dense.dk, tolerance)) << "gradient of k";
    }
    EXPECT_TRUE(is_near(fast.dv, dense.dv, tolerance)) << "gradient of v";
    EXPECT_TRUE(is_near(fast.dbias, dense.dbias, tolerance)) << "gradient of the bias";
  }
};

INSTANTIATE_TEST_SUITE_P(Cpu, DelayedEviction, ::testing::Values(cpu()));
INSTANTIATE_TEST_SUITE_P(Cuda, DelayedEviction, ::testing::ValuesIn(present_gpus()));
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(DelayedEviction);

TEST(DenseReference, IsTheDefinitionElementByElement) {
  const Shape s{.B = 1, .G = 2, .R = 3, .T = 9, .d = 4, .window = 2, .documents = {0, 6, 9}};
  const Inputs in = make_inputs(s, Keys::soft);
  const at::Tensor out = dense_delayed_eviction_attention(in.q, in.k, in.v, in.bias, s.window, s.documents);
  const auto q = in.q.accessor<double, 4>(), k = in.k.accessor<double, 4>(), v = in.v.accessor<double, 4>();
  const auto bias = in.bias.accessor<double, 3>();
  at::Tensor expected = at::zeros_like(out);
  for (int64_t h = 0; h < 6; ++h) {
    for (int64_t t = 0; t < s.T; ++t) {
      double total = 0.0;
      std::vector<double> weighted(4, 0.0);
      for (int64_t key = t < 6 ? 0 : 6; key <= t; ++key) {
        double score = 0.0;
        for (int64_t i = 0; i < s.d; ++i) score += q[0][h][t][i] * k[0][h / 3][key][i];
        score /= 2.0;
        if (t - key > 2) score += bias[0][h / 3][key];
        total += std::exp(score);
        for (int64_t i = 0; i < s.d; ++i) weighted[static_cast<size_t>(i)] += std::exp(score) * v[0][h / 3][key][i];
      }
      for (int64_t i = 0; i < s.d; ++i) expected[0][h][t][i] = weighted[static_cast<size_t>(i)] / total;
    }
  }
  EXPECT_TRUE(is_near(out, expected, 1e-14));
}

TEST_P(DelayedEviction, IsExactForEveryLengthAroundTheWindowAndTheBlocks) {
  const int64_t w = kWindow, block = flash_kernel(GetParam().type).sparse_block_rows();
  for (int64_t T : {int64_t{1}, int64_t{2}, w, w + 1, w + 2, int64_t{67}, block - 1, block, block + 1, w + block,
                    w + block + 1, w + block + 2, w + 2 * block + 1, int64_t{293}, int64_t{607}}) {
    expect_exact({.T = T}, Keys::mixed);
  }
}

TEST_P(DelayedEviction, IsExactWhicheverKeysSurvive) {
  for (Keys keys : {Keys::kept, Keys::gone, Keys::soft, Keys::mixed, Keys::sink, Keys::ragged}) {
    expect_exact({.G = 3}, keys);
    expect_exact({.G = 3, .R = 3, .T = 600}, keys);
  }
}

TEST_P(DelayedEviction, IsExactForWindowsFromNothingToTheWholeSequence) {
  for (int64_t window : {int64_t{0}, int64_t{1}, int64_t{65}, int64_t{66}, int64_t{67}, int64_t{1000}}) {
    expect_exact({.window = window}, Keys::mixed);
  }
  expect_exact({.T = 300, .window = 0}, Keys::mixed);
  expect_exact({.T = 600, .window = 290}, Keys::mixed);
}

TEST_P(DelayedEviction, IsExactForEveryGroupSizeAndBatch) {
  for (int64_t R : {1, 3, 4, 5, 7}) expect_exact({.B = 2, .R = R, .T = 330}, Keys::mixed);
  expect_exact({.B = 2, .G = 3, .R = 3, .T = 289, .d = 64}, Keys::ragged);
  expect_exact({.G = 1, .R = 16, .T = 401}, Keys::sink);  // several tiles a block
}

TEST_P(DelayedEviction, RestartsAtEachDocument) {
  const int64_t w = kWindow;
  const DocumentOffsets documents{0, 1, 1 + w, 2 + 2 * w, 4 + 3 * w, 40 + 3 * w, 360 + 3 * w};  // 1, w, w+1, w+2, ...
  expect_exact({.T = documents.back(), .documents = documents}, Keys::mixed);
  expect_exact({.B = 2, .R = 3, .T = documents.back(), .documents = documents}, Keys::sink);
}

TEST_P(DelayedEviction, ReadsTheBiasOnlyBeyondTheWindow) {
  for (AttentionPath path : {AttentionPath::dense, AttentionPath::sparse}) {
    const Shape s;
    Inputs in = make_inputs(s, Keys::mixed).to(GetParam().exact.front().first);
    const auto output = [&] { return run_here(path, in, s).out.cpu(); };
    const at::Tensor before = output();
    in.bias.detach().slice(2, s.T - s.window - 1).fill_(-7.0);  // keys that no query sees from beyond the window
    EXPECT_TRUE(is_bit_equal(output(), before));
    in.bias.detach().select(2, s.T - s.window - 2).fill_(-7.0);  // a key that only the last query sees from there
    const at::Tensor after = output();
    EXPECT_TRUE(is_bit_equal(after.slice(2, 0, s.T - 1), before.slice(2, 0, s.T - 1)));
    EXPECT_FALSE(is_near(after.slice(2, s.T - 1), before.slice(2, s.T - 1), 1e-9));
  }
}

TEST_P(DelayedEviction, GoneKeysChangeNothingAndReceiveNoGradient) {
  for (AttentionPath path : {AttentionPath::dense, AttentionPath::sparse}) {
    const Shape s{.T = 80};
    Inputs in = make_inputs(s, Keys::kept).to(GetParam().exact.front().first);
    in.bias.detach().select(2, 5).fill_(kGoneBias);
    const Outputs before = run_here(path, in, s);
    in.k.detach().select(2, 5).mul_(2.0);
    const Outputs after = run_here(path, in, s);
    const int64_t first_far = 5 + s.window + 1;
    EXPECT_TRUE(is_bit_equal(after.out.cpu().slice(2, first_far), before.out.cpu().slice(2, first_far)));
    EXPECT_TRUE(is_near(after.dbias.select(2, 5), at::zeros({s.B, s.G}), 0.0));
  }
}

TEST_P(DelayedEviction, TakesThePathThatHasLessToCompute) {
  const at::ScalarType dtype = GetParam().exact.front().first;
  const Shape s{.T = 2 * flash_kernel(GetParam().type).sparse_block_rows() + 700};
  for (const auto& [keys, path] :
       {std::pair{Keys::kept, AttentionPath::dense}, std::pair{Keys::gone, AttentionPath::sparse}}) {
    const Inputs in = make_inputs(s, keys).to(dtype);
    const Outputs chosen = run_here(AttentionPath::automatic, in, s), forced = run_here(path, in, s);
    EXPECT_TRUE(is_bit_equal(chosen.out.cpu(), forced.out.cpu()));
    EXPECT_TRUE(is_bit_equal(chosen.dk.cpu(), forced.dk.cpu()));
  }
}

// One sample's result depends on nothing but the sample: neither on its batch nor on the number of threads.
TEST(DelayedEvictionOnCpu, IsBitEqualOverBatchesAndThreads) {
  const int threads = at::get_num_threads();
  const Shape s{.B = 2, .G = 2, .R = 3, .T = 1150, .d = 64};
  for (AttentionPath path : {AttentionPath::dense, AttentionPath::sparse, AttentionPath::automatic}) {
    SCOPED_TRACE(static_cast<int>(path));
    const Inputs in = make_inputs(s, Keys::ragged).to(at::kFloat);
    at::set_num_threads(1);
    const Outputs one = run(path, in, s);
    for (int num_threads : {2, 3, 5}) {
      at::set_num_threads(num_threads);
      const Outputs many = run(path, in, s);
      EXPECT_TRUE(is_bit_equal(many.out, one.out)) << num_threads;
      EXPECT_TRUE(is_bit_equal(many.dq, one.dq)) << num_threads;
      EXPECT_TRUE(is_bit_equal(many.dk, one.dk)) << num_threads;
      EXPECT_TRUE(is_bit_equal(many.dv, one.dv)) << num_threads;
      EXPECT_TRUE(is_bit_equal(many.dbias, one.dbias)) << num_threads;
    }
    at::set_num_threads(threads);
    Shape single = s;
    single.B = 1;
    const auto second = [](const at::Tensor& x) { return x.detach().slice(0, 1, 2).clone().set_requires_grad(true); };
    const Outputs alone =
        run(path, {second(in.q), second(in.k), second(in.v), second(in.bias), second(in.dout)}, single);
    EXPECT_TRUE(is_bit_equal(alone.out, one.out.slice(0, 1, 2)));
    EXPECT_TRUE(is_bit_equal(alone.dk, one.dk.slice(0, 1, 2)));
  }
}

TEST(DelayedEvictionOnCpu, LosesOnlyRoundingInBfloat16) {
  for (Keys keys : {Keys::kept, Keys::mixed, Keys::sink}) {
    const Shape s{.R = 3, .T = 290, .d = 16};
    const Inputs in = make_inputs(s, keys).to(at::kBFloat16);
    const Outputs dense = run(dense_delayed_eviction_attention, in, s);
    const at::Tensor magnitude =
        dense_delayed_eviction_attention(in.q, in.k, in.v.abs(), in.bias, s.window, s.offsets()).detach();
    for (AttentionPath path : {AttentionPath::dense, AttentionPath::sparse}) {
      const Outputs fast = run(path, in, s);
      EXPECT_TRUE(
          ((fast.out.to(at::kDouble) - dense.out).abs() <= 3.0 * kBfloat16Epsilon * magnitude).all().item<bool>());
      for (const auto& [actual, expected] :
           {std::pair{fast.dq, dense.dq}, {fast.dk, dense.dk}, {fast.dv, dense.dv}, {fast.dbias, dense.dbias}}) {
        EXPECT_TRUE(is_near(actual, expected, 4.0 * kBfloat16Epsilon));
      }
    }
  }
}

TEST(CausalAttention, IsDenseAttentionWithoutBias) {
  for (const Shape& s :
       {Shape{}, Shape{.B = 2, .R = 3, .T = 257}, Shape{.T = 1}, Shape{.T = 60, .documents = {0, 1, 30, 60}}}) {
    SCOPED_TRACE(::testing::Message() << s);
    const Inputs in = make_inputs(s, Keys::kept);
    const FlashOutput fast = causal_attention(in.q, in.k, in.v, s.offsets());
    EXPECT_TRUE(
        is_near(fast.out_BHTd, dense_delayed_eviction_attention(in.q, in.k, in.v, in.bias, s.T, s.offsets()), 1e-13));
    const at::Tensor score = at::matmul(in.q, in.k.repeat_interleave(s.R, 1).transpose(2, 3)) / std::sqrt(8.0);
    const at::Tensor hidden = dense_causal_visibility(s.T, s.offsets()).logical_not();
    EXPECT_TRUE(is_near(fast.lse_BHT, at::logsumexp(score.masked_fill(hidden, -1e300), {-1}), 1e-13));
  }
}

}  // namespace
}  // namespace dms
