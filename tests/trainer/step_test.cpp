#include "trainer/step.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "model/noise.h"
#include "tests/support/dense_model.h"
#include "tests/support/tensor_comparison.h"
#include "tests/support/tiny_source.h"
#include "tests/support/tiny_text.h"
#include "trainer/ordered_sum.h"

namespace dms {
namespace {

constexpr int64_t kTokens = 48, kStep = 5, kFirstSample = 12;

struct DenseStep {
  double kl = 0.0, compression_loss = 0.0, alpha_mean = 0.0, eviction_rate = 0.0;
  std::vector<at::Tensor> gradients;
};

// The definition of the loss, in float64, differentiated by autograd through the whole network at once.
class DenseLoss {
 public:
  DenseLoss(WeightSource& source, const Adapter& adapter, const StepOptions& options)
      : source_(source), adapter_(adapter), options_(options), parameters_(dense_parameters(adapter)) {}

  DenseStep run(const std::vector<Sample>& batch) {
    const at::AutoGradMode with_grad(true);
    at::Tensor kl_sum = zero();
    double num_positions = 0.0;
    for (size_t s = 0; s < batch.size(); ++s) {
      const at::Tensor mask_T = at::tensor(at::ArrayRef<uint8_t>(batch[s].loss_mask)).to(at::kDouble);
      kl_sum = kl_sum + at::sum(kl_of(batch[s], kFirstSample + static_cast<int64_t>(s)) * mask_T);
      num_positions += mask_T.sum().item<double>();
    }
    const double target = target_fraction(compression_ratio_at(options_.compression, kStep));
    const at::Tensor fraction =
        options_.compression.count == CompressionCount::soft ? far_alpha_ / far_count_ : all_alpha_ / all_count_;
    const at::Tensor kl = kl_sum / num_positions;
    const at::Tensor compression = options_.compression.loss_weight * at::relu(target - fraction);
    DenseStep result{kl.item<double>(),
                     compression.item<double>(),
                     (far_alpha_ / far_count_).item<double>(),
                     far_evicted_ / far_count_,
                     {}};
    std::vector<at::Tensor> leaves;
    for (const Adapter::Parameter& p : adapter_.parameters()) leaves.push_back(parameters_.at(p.name));
    result.gradients = torch::autograd::grad({kl + compression}, leaves);
    return result;
  }

 private:
  static at::Tensor zero() { return at::zeros({}, at::kDouble); }

  at::Tensor kl_of(const Sample& sample, int64_t index) {
    const auto num_tokens = static_cast<int64_t>(sample.tokens.size());
    const DocumentOffsets documents =
        options_.attend_across_documents ? DocumentOffsets{0, num_tokens} : sample.document_offsets;
    const EvictionOptions& eviction = options_.eviction;
    at::Tensor far_T = at::zeros({num_tokens}, at::kDouble);
    for (size_t j = 0; j + 1 < documents.size(); ++j) {
      for (int64_t k = documents[j]; k < documents[j + 1] - eviction.window - 1; ++k) far_T[k] = 1.0;
    }
    const at::Tensor teacher_TV = dense_log_probabilities_TV(source_, sample.tokens, documents);
    const at::Tensor student_TV = dense_log_probabilities_TV(
        source_, sample.tokens, documents, eviction.window,
        [&](int64_t layer, const at::Tensor& x_TD, const at::Tensor& normed_TD) {
          const at::Tensor logit_GT = dense_eviction_logit_GT(
              adapter_, eviction, parameters_, source_.architecture().rms_norm_eps, layer, x_TD, normed_TD);
          const at::Tensor noise_GT =
              logistic_noise_GT(options_.seed, kStep, index, layer, logit_GT.size(0), num_tokens).to(at::kDouble);
          const at::Tensor dec_GT = dense_decisions_GT(logit_GT + noise_GT, eviction.decision_shift, documents);
          const at::Tensor z_GT = dec_GT / eviction.tau;
          far_alpha_ = far_alpha_ + at::sum(at::sigmoid(z_GT) * far_T);
          far_count_ += at::sum(far_T).item<double>() * static_cast<double>(logit_GT.size(0));
          far_evicted_ +=
              at::sum((dense_decisions_GT(logit_GT, eviction.decision_shift, documents) > 0) * far_T).item<double>();
          // Straight through: counted as hard decisions, differentiated as probabilities.
          const at::Tensor soft_GT = at::sigmoid((logit_GT + noise_GT) / eviction.tau);
          all_alpha_ = all_alpha_ + at::sum(((soft_GT > 0.5).to(at::kDouble) - soft_GT).detach() + soft_GT);
          all_count_ += static_cast<double>(logit_GT.numel());
          const at::Tensor bias_GT =
              at::log_sigmoid(-z_GT).masked_fill(z_GT <= -17.0, 0.0).masked_fill(z_GT >= eviction.truncate_at, -1e30);
          return DenseEviction{bias_GT, dense_kept_queries_Hdd(adapter_, source_.architecture(), layer)};
        });
    const double s = options_.distillation.temperature;
    const at::Tensor log_t = at::log_softmax(teacher_TV / s, -1), log_s = at::log_softmax(student_TV / s, -1);
    return s * s *
           (options_.distillation.kl == KlDirection::forward ? dense_kl_T(log_t, log_s) : dense_kl_T(log_s, log_t));
  }

  WeightSource& source_;
  const Adapter& adapter_;
  const StepOptions& options_;
  const DenseParameters parameters_;
  at::Tensor far_alpha_ = zero(), all_alpha_ = zero();
  double far_count_ = 0.0, far_evicted_ = 0.0, all_count_ = 0.0;
};

class TrainingStepTest : public ::testing::Test {
 protected:
  TrainingStepTest() {
    options_.eviction.window = 8;
    options_.eviction.tau = 0.5;
    options_.compression.ramp_steps = 0;
    options_.compression.final = 16.0;
    options_.compression.loss_weight = 2.0;
    options_.seed = 9;
  }

  // Decisions of both signs, and every parameter away from its start.
  std::unique_ptr<Adapter> make(AdapterOptions options) const {
    auto adapter = make_adapter(options_.eviction, options, *source_,
                                options.kind == AdapterKind::neuron
                                    ? std::vector<std::vector<BorrowedChannel>>{{{0, 1}, {3, 6}}, {{1, 0}, {2, 5}}}
                                    : std::vector<std::vector<BorrowedChannel>>{});
    const at::NoGradGuard no_grad;
    uint64_t seed = 70;
    for (Adapter::Parameter& p : adapter->parameters()) {
      const bool bias = p.name.ends_with(".bias"), factor = p.name.find(".lora_") != std::string::npos;
      p.tensor.add_((bias ? 1.0 : factor ? 0.1 : 0.01) * seeded_normal(p.tensor.sizes(), ++seed) + (bias ? 4.0 : 0.0));
    }
    return adapter;
  }

  std::vector<Sample> batch(int64_t size, int64_t num_tokens = kTokens) const {
    std::vector<Sample> samples;
    for (int64_t i = 0; i < size; ++i) samples.push_back(tiny_sample(num_tokens, 20 + static_cast<uint64_t>(i)));
    return samples;
  }

  StepResult run(const Adapter& adapter, const std::vector<Sample>& samples,
                 int64_t first_sample = kFirstSample) const {
    const RopeTables rope = make_rope_tables(source_.architecture(), static_cast<int64_t>(samples[0].tokens.size()),
                                             at::TensorOptions().dtype(at::kFloat));
    return training_step(*source_, adapter, options_, rope, kStep, first_sample, samples, *single_rank());
  }

  void expect_dense(const AdapterOptions& adapter_options, const std::vector<Sample>& samples) const {
    const auto adapter = make(adapter_options);
    const StepResult actual = run(*adapter, samples);
    const DenseStep expected = DenseLoss(*source_, *adapter, options_).run(samples);
    EXPECT_NEAR(actual.kl, expected.kl, 2e-5 * expected.kl);
    EXPECT_NEAR(actual.compression_loss, expected.compression_loss, 1e-5);
    EXPECT_EQ(actual.loss, actual.kl + actual.compression_loss);
    EXPECT_NEAR(actual.alpha_mean, expected.alpha_mean, 1e-5);
    EXPECT_NEAR(actual.eviction_rate, expected.eviction_rate, 1e-12);
    EXPECT_GT(actual.eviction_rate, 0.1);
    EXPECT_LT(actual.eviction_rate, 0.9);
    const auto parameters = adapter->parameters();
    ASSERT_EQ(actual.gradients.size(), parameters.size());
    for (size_t p = 0; p < parameters.size(); ++p) {
      EXPECT_TRUE(is_near(actual.gradients[p], expected.gradients[p], 1e-4)) << parameters[p].name;
    }
  }

  static const std::vector<AdapterOptions>& adapters() {
    static const std::vector<AdapterOptions> all{{AdapterKind::linear, 0, AdapterBias::per_head},
                                                 {AdapterKind::neuron, 0, AdapterBias::per_head},
                                                 {AdapterKind::neuron, 2, AdapterBias::none}};
    return all;
  }

  const TinySource source_;
  StepOptions options_;
};

void expect_bit_equal(const StepResult& actual, const StepResult& expected) {
  EXPECT_EQ(actual.kl, expected.kl);
  EXPECT_EQ(actual.loss, expected.loss);
  EXPECT_EQ(actual.compression_loss, expected.compression_loss);
  EXPECT_EQ(actual.alpha_mean, expected.alpha_mean);
  EXPECT_EQ(actual.eviction_rate, expected.eviction_rate);
  ASSERT_EQ(actual.gradients.size(), expected.gradients.size());
  for (size_t p = 0; p < actual.gradients.size(); ++p) {
    EXPECT_TRUE(is_bit_equal(actual.gradients[p], expected.gradients[p])) << "parameter " << p;
  }
}

TEST_F(TrainingStepTest, IsTheDefinitionForBothAdaptersAndShifts) {
  for (const AdapterOptions& adapter : adapters()) {
    for (int64_t shift : {0, 1}) {
      SCOPED_TRACE(::testing::Message() << "kind " << static_cast<int>(adapter.kind) << " rank " << adapter.rank
                                        << " shift " << shift);
      options_.eviction.decision_shift = shift;
      expect_dense(adapter, batch(2));
    }
  }
}

TEST_F(TrainingStepTest, IsTheDefinitionForStraightThroughCounts) {
  options_.compression.count = CompressionCount::straight_through;
  for (const AdapterOptions& adapter : adapters()) expect_dense(adapter, batch(2));
}

TEST_F(TrainingStepTest, IsTheDefinitionOnceTheTargetIsReached) {
  options_.compression.final = 1.0;
  for (CompressionCount count : {CompressionCount::soft, CompressionCount::straight_through}) {
    options_.compression.count = count;
    expect_dense(adapters()[0], batch(2));
    EXPECT_EQ(run(*make(adapters()[0]), batch(2)).compression_loss, 0.0);
  }
}

TEST_F(TrainingStepTest, IsTheDefinitionWithinDocumentsAndLossMasks) {
  std::vector<Sample> samples = batch(3);
  samples[0].document_offsets = {0, 1, 10, 19, kTokens};
  samples[1].document_offsets = {0, 9, kTokens};
  for (size_t t = 0; t < kTokens; t += 3) samples[0].loss_mask[t] = 0;
  std::fill(samples[2].loss_mask.begin(), samples[2].loss_mask.end(), uint8_t{0});  // counts for compression only
  for (bool across : {false, true}) {
    options_.attend_across_documents = across;
    for (const AdapterOptions& adapter : adapters()) expect_dense(adapter, samples);
  }
}

// Sequences are packed with documents end to end.  What a document loses and how it is trained may not depend on a
// single token of its neighbours, unless the recipe lets attention cross.
TEST_F(TrainingStepTest, NoAttentionCrossesDocuments) {
  constexpr size_t kBegin = 15, kEnd = 36;
  options_.compression.loss_weight = 0.0;  // the eviction rate is one of all documents together
  std::vector<Sample> samples = batch(1), changed = batch(1);
  for (Sample* sample : {&samples[0], &changed[0]}) {
    sample->document_offsets = {0, kBegin, kEnd, kTokens};
    for (size_t t = 0; t < sample->loss_mask.size(); ++t) sample->loss_mask[t] = t >= kBegin && t < kEnd ? 1 : 0;
  }
  for (size_t t = 0; t < changed[0].tokens.size(); ++t) {
    if (t < kBegin || t >= kEnd) changed[0].tokens[t] = samples[0].tokens[t] == 0 ? 1 : 0;
  }
  for (const AdapterOptions& adapter_options : adapters()) {
    const auto adapter = make(adapter_options);
    options_.attend_across_documents = false;
    const StepResult before = run(*adapter, samples), after = run(*adapter, changed);
    EXPECT_GT(before.kl, 0.0);
    EXPECT_EQ(before.kl, after.kl);
    for (size_t p = 0; p < before.gradients.size(); ++p) {
      EXPECT_TRUE(is_bit_equal(before.gradients[p], after.gradients[p]));
    }
    options_.attend_across_documents = true;
    EXPECT_NE(run(*adapter, samples).kl, run(*adapter, changed).kl) << "tokens that nobody would miss prove nothing";
  }
}

TEST_F(TrainingStepTest, IsTheDefinitionForReverseKlTemperatureAndTruncation) {
  options_.distillation = {KlDirection::reverse, 2.0};
  expect_dense(adapters()[0], batch(1));
  options_.distillation = {};
  options_.eviction.truncate_at = 2.0;
  expect_dense(adapters()[0], batch(1));
  options_.eviction.window = 0;
  expect_dense(adapters()[1], batch(1));
}

TEST_F(TrainingStepTest, KeptGraphsAndRecomputationAreBitEqual) {
  for (const AdapterOptions& adapter_options : adapters()) {
    const auto adapter = make(adapter_options);
    options_.checkpointing = ActivationCheckpointing::full;
    const StepResult full = run(*adapter, batch(2));
    for (const auto plan : {ActivationCheckpointing::selective, ActivationCheckpointing::none}) {
      options_.checkpointing = plan;
      expect_bit_equal(run(*adapter, batch(2)), full);
    }
  }
}

TEST_F(TrainingStepTest, BatchKlIsTheMeanOverAllCountedPositions) {
  options_.compression.loss_weight = 0.0;
  std::vector<Sample> samples = batch(2);
  for (size_t t = 0; t < 36; ++t) samples[1].loss_mask[t] = 0;  // 48 against 12 counted
  const auto adapter = make(adapters()[0]);
  const StepResult both = run(*adapter, samples), first = run(*adapter, {samples[0]}),
                   second = run(*adapter, {samples[1]}, kFirstSample + 1);
  EXPECT_NEAR(both.kl, 0.8 * first.kl + 0.2 * second.kl, 1e-12);
  for (size_t p = 0; p < both.gradients.size(); ++p) {
    EXPECT_TRUE(is_near(both.gradients[p], 0.8 * first.gradients[p] + 0.2 * second.gradients[p], 1e-5));
  }
}

// Samples of equally many counted positions scale by powers of two, which is exact, so what remains is the order of
// summation: a binary tree over the sample index, whatever the partition of the batch.
TEST_F(TrainingStepTest, SamplesAccumulateByABinaryTree) {
  const auto adapter = make(adapters()[0]);
  const std::vector<Sample> samples = batch(4);
  const StepResult whole = run(*adapter, samples);
  std::vector<StepResult> single;
  for (size_t s = 0; s < 4; ++s) single.push_back(run(*adapter, {samples[s]}, kFirstSample + static_cast<int64_t>(s)));
  const StepResult left = run(*adapter, {samples[0], samples[1]}),
                   right = run(*adapter, {samples[2], samples[3]}, kFirstSample + 2);
  bool order_shows = false;
  for (size_t p = 0; p < whole.gradients.size(); ++p) {
    const auto g = [&](size_t s) { return single[s].gradients[p] / 4.0; };
    EXPECT_TRUE(is_bit_equal(whole.gradients[p], (g(0) + g(1)) + (g(2) + g(3))));
    EXPECT_TRUE(is_bit_equal(whole.gradients[p], (left.gradients[p] + right.gradients[p]) / 2.0));
    order_shows = order_shows || !is_bit_equal(whole.gradients[p], ((g(0) + g(1)) + g(2)) + g(3));
  }
  EXPECT_TRUE(order_shows) << "these samples cannot tell one order of summation from another";
  EXPECT_DOUBLE_EQ(whole.kl, ((single[0].kl + single[1].kl) + (single[2].kl + single[3].kl)) / 4.0);
}

TEST_F(TrainingStepTest, NoiseDependsOnTheSampleIndex) {
  const auto adapter = make(adapters()[0]);
  const StepResult here = run(*adapter, batch(1)), there = run(*adapter, batch(1), kFirstSample + 1);
  EXPECT_NE(here.alpha_mean, there.alpha_mean);
  EXPECT_NE(here.kl, there.kl);
}

TEST_F(TrainingStepTest, IsBitEqualOnOneAndTwoThreads) {
  const int threads = at::get_num_threads();
  for (const AdapterOptions& adapter_options : adapters()) {
    const auto adapter = make(adapter_options);
    const std::vector<Sample> samples = batch(1, 1100);  // 1100 * 32 values are enough for ATen to split the work
    at::set_num_threads(1);
    const StepResult one = run(*adapter, samples);
    at::set_num_threads(2);
    const StepResult two = run(*adapter, samples);
    at::set_num_threads(threads);
    expect_bit_equal(two, one);
  }
}

TEST_F(TrainingStepTest, WithoutFarKeysOrCountedPositionsIsZeroNotNaN) {
  std::vector<Sample> samples = batch(1, 9);  // the window reaches over everything
  std::fill(samples[0].loss_mask.begin(), samples[0].loss_mask.end(), uint8_t{0});
  const StepResult result = run(*make(adapters()[0]), samples);
  EXPECT_EQ(result.kl, 0.0);
  EXPECT_EQ(result.alpha_mean, 0.0);
  EXPECT_EQ(result.eviction_rate, 0.0);
  for (const at::Tensor& gradient : result.gradients) EXPECT_EQ(gradient.abs().max().item<double>(), 0.0);
}

}  // namespace
}  // namespace dms
