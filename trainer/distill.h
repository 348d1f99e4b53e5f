// The LM head and the distillation loss, fused by chunks of tokens: neither model's [T, V] logits ever exist, and the
// gradient with respect to the student's final hidden states is formed on the spot (the head is frozen).
//   forward  KL(teacher || student)      reverse  KL(student || teacher), what NVIDIA's trainer computes
// With temperature s both logits are divided by s and the loss multiplied by s^2.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "model/weights.h"
#include "recipes/schema.h"
#include "trainer/logit_tiles.h"

namespace dms {

struct DistillationOptions {
  KlDirection kl = KlDirection::forward;
  double temperature = 1.0;
};
void describe(Schema& schema, DistillationOptions& options);

struct DistillationResult {
  double kl_sum = 0.0;     // over counted positions, nats
  at::Tensor dstudent_TD;  // gradient of gradient_scale * kl_sum with respect to student_TD
};

struct DistillationSample {
  at::Tensor teacher_TD, student_TD;  // the residual streams after the last layer
  std::vector<uint8_t> loss_mask;     // [T]: 1 = counted; only counted positions are projected onto the vocabulary
};

// Of each sample, with the head of `source`.  A head in slices is walked up and down once for all samples (there may be
// none); the results have the bits that a whole head gives.
std::vector<DistillationResult> distill(WeightSource& source, std::vector<DistillationSample> samples,
                                        const DistillationOptions& options, double gradient_scale);
// The kl_sum of each sample alone.
std::vector<double> kl_sums(WeightSource& source, const std::vector<DistillationSample>& samples,
                            const DistillationOptions& options);

// Per-position KL(teacher || student), float32, with the other figures that evaluation reports.
struct HeadComparison {
  at::Tensor kl_T;
  at::Tensor same_top1_T;    // 1 where both models rank the same token first
  at::Tensor teacher_nll_T;  // -log p(next token), for the first T-1 positions
  at::Tensor student_nll_T;
};
HeadComparison compare_heads(const HeadWeights& head, const at::Tensor& teacher_TD, const at::Tensor& student_TD,
                             const std::vector<int32_t>& tokens);

}  // namespace dms
