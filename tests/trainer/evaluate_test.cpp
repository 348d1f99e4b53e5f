#include "trainer/evaluate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/dense_model.h"
#include "tests/support/tensor_comparison.h"
#include "tests/support/tiny_source.h"
#include "tests/support/tiny_text.h"

namespace dms {
namespace {

constexpr int64_t kTokens = 70, kLayers = 2, kKvHeads = 2, kHeadDim = 8;

class EvaluateTest : public ::testing::Test {
 protected:
  EvaluateTest() {
    options_.eviction.window = 8;
    adapter_ = make_adapter(options_.eviction, {AdapterKind::linear, 0, AdapterBias::per_head}, *source_, {});
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      adapter_->set_logit_function(
          layer, 0.3 * seeded_normal({kKvHeads, 32}, 40 + static_cast<uint64_t>(layer)).to(at::kFloat),
          at::tensor({1.0F, -1.5F}));
    }
  }

  EvaluationRecord run(const std::vector<Sample>& windows) const {
    return evaluate(*source_, *adapter_, options_, windows, [](int64_t, int64_t) {});
  }

  DocumentOffsets documents_of(const Sample& sample) const {
    return options_.attend_across_documents ? DocumentOffsets{0, kTokens} : sample.document_offsets;
  }

  // The dense hard student: decisions of both layers and the log-probabilities.
  struct Dense {
    std::vector<at::Tensor> dec_GT;
    at::Tensor teacher_TV, student_TV;
  };
  Dense dense(const Sample& sample) const {
    Dense d;
    const DocumentOffsets documents = documents_of(sample);
    d.teacher_TV = dense_log_probabilities_TV(*source_, sample.tokens, documents);
    d.student_TV = dense_log_probabilities_TV(
        *source_, sample.tokens, documents, options_.eviction.window,
        [&](int64_t layer, const at::Tensor& x_TD, const at::Tensor& normed_TD) {
          const at::Tensor logit_GT =
              dense_eviction_logit_GT(*adapter_, options_.eviction, dense_parameters(*adapter_),
                                      source_.architecture().rms_norm_eps, layer, x_TD, normed_TD)
                  .detach();
          EXPECT_GT(logit_GT.abs().min().item<double>(), 1e-4) << "a near-tie: choose other weights";
          d.dec_GT.push_back(dense_decisions_GT(logit_GT, options_.eviction.decision_shift, documents));
          return DenseEviction{at::zeros({kKvHeads, kTokens}, at::kDouble).masked_fill(d.dec_GT.back() > 0, -1e30), {}};
        });
    return d;
  }

  // The dense model that sees, beyond the newest `window` + 1 keys, only the first `num_sinks` of each document.
  at::Tensor dense_sinks_and_window_TV(const Sample& sample, int64_t num_sinks, int64_t window) const {
    const DocumentOffsets documents = documents_of(sample);
    at::Tensor bias_GT = at::full({kKvHeads, kTokens}, -1e30, at::kDouble);
    for (size_t j = 0; j + 1 < documents.size(); ++j) {
      bias_GT.slice(1, documents[j], std::min(documents[j] + num_sinks, documents[j + 1])).zero_();
    }
    return dense_log_probabilities_TV(*source_, sample.tokens, documents, window,
                                      [&](int64_t, const at::Tensor&, const at::Tensor&) {
                                        return DenseEviction{bias_GT, {}};
                                      });
  }

  void expect_dense(const std::vector<Sample>& windows) const {
    const EvaluationRecord record = run(windows);
    const int64_t window = options_.eviction.window;
    std::vector<at::Tensor> kl, teacher_nll, student_nll;
    std::vector<int32_t> last_use;
    int64_t live_keys = 0, keys_read = 0, dense_keys = 0, num_sequences = 0, dense_bytes = 0;
    double same_top1 = 0.0;
    std::vector<std::vector<double>> kept(kLayers, std::vector<double>(kKvHeads, 0.0)), counted = kept;
    for (const Sample& sample : windows) {
      const Dense d = dense(sample);
      kl.push_back(dense_kl_T(d.teacher_TV, d.student_TV));
      same_top1 += (d.teacher_TV.argmax(-1) == d.student_TV.argmax(-1)).sum().item<double>();
      for (int64_t t = 0; t + 1 < kTokens; ++t) {
        const int32_t next = sample.tokens[static_cast<size_t>(t) + 1];
        teacher_nll.push_back(-d.teacher_TV[t][next]);
        student_nll.push_back(-d.student_TV[t][next]);
      }
      const DocumentOffsets documents = documents_of(sample);
      for (size_t j = 0; j + 1 < documents.size(); ++j) {
        for (int64_t t = documents[j]; t + 1 < documents[j + 1]; ++t) {
          last_use.push_back(0);
          for (int64_t s = documents[j]; s <= t; ++s) {
            if (sample.tokens[static_cast<size_t>(s)] == sample.tokens[static_cast<size_t>(t) + 1]) {
              last_use.back() = static_cast<int32_t>(t + 1 - s);
            }
          }
        }
        last_use.push_back(-1);
        ++num_sequences;
        const int64_t begin = documents[j], end = documents[j + 1], length = end - begin;
        dense_keys += kLayers * kKvHeads * length * (length + 1) / 2;
        dense_bytes += kLayers * kKvHeads * length * 2 * kHeadDim * 4;
        for (int64_t layer = 0; layer < kLayers; ++layer) {
          const auto dec = d.dec_GT[static_cast<size_t>(layer)].accessor<double, 2>();
          for (int64_t g = 0; g < kKvHeads; ++g) {
            for (int64_t k = begin; k < end; ++k) {
              const bool evicted = dec[g][k] > 0.0, far_at_end = end - 1 - k > window;
              live_keys += evicted && far_at_end ? 0 : 1;
              keys_read += evicted ? std::min(end - k, window + 1) : end - k;
              kept[static_cast<size_t>(layer)][static_cast<size_t>(g)] += far_at_end && !evicted ? 1.0 : 0.0;
              counted[static_cast<size_t>(layer)][static_cast<size_t>(g)] += far_at_end ? 1.0 : 0.0;
            }
          }
        }
      }
    }
    const MethodRecord& s = record.student;
    EXPECT_TRUE(is_near(at::tensor(s.kl), at::cat(kl), 1e-4));
    EXPECT_EQ(s.same_top1, same_top1);
    EXPECT_EQ(record.last_use, last_use);
    EXPECT_EQ(s.nll_count, static_cast<int64_t>(student_nll.size()));
    EXPECT_NEAR(s.nll_sum, at::stack(student_nll).sum().item<double>(), 1e-3);
    EXPECT_NEAR(record.teacher_nll_sum, at::stack(teacher_nll).sum().item<double>(), 1e-3);
    EXPECT_EQ(s.live_keys, live_keys);
    EXPECT_EQ(s.keys_read, keys_read);
    EXPECT_EQ(s.dense_keys_read, dense_keys);
    EXPECT_EQ(s.dense_bytes, dense_bytes);
    EXPECT_EQ(s.live_bytes, live_keys * 2 * kHeadDim * 4);
    EXPECT_GE(s.allocated_bytes, s.live_bytes);
    EXPECT_EQ(record.kept, kept);
    EXPECT_EQ(record.counted, counted);

    const int64_t n = (live_keys + kLayers * kKvHeads * num_sequences - 1) / (kLayers * kKvHeads * num_sequences);
    EXPECT_EQ(record.baseline_live_keys, n);
    ASSERT_GT(n, 5);
    std::vector<at::Tensor> sliding, streaming;
    int64_t baseline_live = 0;
    for (const Sample& sample : windows) {
      const at::Tensor teacher_TV = dense_log_probabilities_TV(*source_, sample.tokens, documents_of(sample));
      sliding.push_back(dense_kl_T(teacher_TV, dense_sinks_and_window_TV(sample, 0, n - 1)));
      streaming.push_back(dense_kl_T(teacher_TV, dense_sinks_and_window_TV(sample, 4, n - 5)));
      const DocumentOffsets documents = documents_of(sample);
      for (size_t j = 0; j + 1 < documents.size(); ++j) {
        baseline_live += kLayers * kKvHeads * std::min(n, documents[j + 1] - documents[j]);
      }
    }
    EXPECT_TRUE(is_near(at::tensor(record.sliding_window.kl), at::cat(sliding), 1e-4));
    EXPECT_TRUE(is_near(at::tensor(record.streaming_llm.kl), at::cat(streaming), 1e-4));
    EXPECT_EQ(record.sliding_window.live_keys, baseline_live);
    EXPECT_EQ(record.streaming_llm.live_keys, baseline_live);
  }

  const TinySource source_;
  EvaluationOptions options_;
  std::unique_ptr<Adapter> adapter_;
};

TEST_F(EvaluateTest, IsTheDenseHardStudentWithItsBaselines) {
  for (int64_t shift : {0, 1}) {
    options_.eviction.decision_shift = shift;
    expect_dense({tiny_sample(kTokens, 1), tiny_sample(kTokens, 2)});
  }
}

TEST_F(EvaluateTest, StartsAFreshCacheForEachDocument) {
  options_.attend_across_documents = false;
  std::vector<Sample> windows{tiny_sample(kTokens, 3), tiny_sample(kTokens, 4)};
  windows[0].document_offsets = {0, 1, 31, kTokens};
  windows[1].document_offsets = {0, 25, kTokens};
  expect_dense(windows);
}

TEST_F(EvaluateTest, LooksAcrossPrefillChunks) {
  // Longer than one chunk of 256 tokens: the same KL as the dense form at every position.
  const Sample sample = tiny_sample(300, 5);
  options_.with_baselines = false;
  const EvaluationRecord record = run({sample});
  const at::Tensor teacher_TV = dense_log_probabilities_TV(*source_, sample.tokens, {0, 300});
  const at::Tensor student_TV = dense_log_probabilities_TV(
      *source_, sample.tokens, {0, 300}, 8, [&](int64_t layer, const at::Tensor& x_TD, const at::Tensor& normed_TD) {
        const at::Tensor logit_GT = dense_eviction_logit_GT(*adapter_, options_.eviction, dense_parameters(*adapter_),
                                                            1e-5, layer, x_TD, normed_TD);
        return DenseEviction{
            at::zeros({2, 300}, at::kDouble).masked_fill(dense_decisions_GT(logit_GT, 1, {0, 300}) > 0, -1e30), {}};
      });
  EXPECT_TRUE(is_near(at::tensor(record.student.kl), dense_kl_T(teacher_TV, student_TV), 1e-4));
  EXPECT_EQ(record.baseline_live_keys, 0);
  ASSERT_EQ(record.memory_by_length.size(), 2U);
  EXPECT_EQ(record.memory_by_length[0].tokens, 256);
  EXPECT_EQ(record.memory_by_length[1].tokens, 300);
  EXPECT_EQ(record.memory_by_length[0].dense_bytes, 256.0 * 2 * kHeadDim * 4 * kLayers * kKvHeads);
  EXPECT_EQ(record.memory_by_length[1].allocated_bytes, static_cast<double>(record.student.allocated_bytes));
}

TEST_F(EvaluateTest, SampleSaysHowManyHeadsKeepEachToken) {
  const Sample sample = tiny_sample(kTokens, 1);
  const EvaluationRecord record = run({sample, tiny_sample(kTokens, 2)});
  const Dense d = dense(sample);
  EXPECT_EQ(record.sample_tokens, sample.tokens);
  ASSERT_EQ(record.sample_kept_heads.size(), static_cast<size_t>(kTokens));
  for (int64_t t = 0; t < kTokens; ++t) {
    int64_t kept = 0;
    for (const at::Tensor& dec_GT : d.dec_GT) kept += (dec_GT.select(1, t) <= 0).sum().item<int64_t>();
    EXPECT_EQ(record.sample_kept_heads[static_cast<size_t>(t)], kept) << t;
  }
}

TEST_F(EvaluateTest, NoiseFloorIsTheDistanceOfTwoKernelsNotOfTwoModels) {
  const EvaluationRecord record = run({tiny_sample(kTokens, 1), tiny_sample(kTokens, 2)});
  EXPECT_EQ(record.noise_floor_tokens, kTokens);
  EXPECT_LT(std::abs(record.noise_floor_kl_sum), 1e-4);
  double kl_sum = 0.0;
  for (float kl : record.student.kl) kl_sum += kl;
  EXPECT_GT(kl_sum, 1.0);
}

TEST_F(EvaluateTest, KeepingEverythingCostsNothing) {
  adapter_ = make_adapter(options_.eviction, {AdapterKind::linear, 0, AdapterBias::per_head}, *source_, {});
  const EvaluationRecord record = run({tiny_sample(kTokens, 1)});
  for (float kl : record.student.kl) EXPECT_LT(std::abs(kl), 1e-5F);
  EXPECT_EQ(record.student.live_keys, kLayers * kKvHeads * kTokens);
  EXPECT_EQ(record.student.keys_read, record.student.dense_keys_read);
  EXPECT_EQ(record.baseline_live_keys, kTokens);
}

TEST_F(EvaluateTest, ReportsEachPassOnce) {
  std::vector<int64_t> seen;
  evaluate(*source_, *adapter_, options_, {tiny_sample(kTokens, 1), tiny_sample(kTokens, 2)},
           [&](int64_t done, int64_t total) {
             EXPECT_EQ(total, 6);
             seen.push_back(done);
           });
  EXPECT_EQ(seen, (std::vector<int64_t>{1, 2, 3, 4, 5, 6}));
}

}  // namespace
}  // namespace dms
