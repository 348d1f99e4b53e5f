#include "trainer/distill.h"

#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "model/block.h"
#include "trainer/ordered_sum.h"

namespace dms {

namespace {

// Rows of logits that exist at a time, per model.  128 rows keep the GEMM at full rate (it streams the head's weights
// once per chunk) in 25 MB for a vocabulary of 49k and 78 MB for 152k.
constexpr int64_t kChunkRows = 128;

at::Tensor log_probabilities(const at::Tensor& normed_CD, const at::Tensor& head_VD, double temperature) {
  at::Tensor logits_CV = at::linear(normed_CD, head_VD).to(at::kFloat);
  if (temperature != 1.0) logits_CV.div_(temperature);
  return at::log_softmax(logits_CV, -1);
}

at::Tensor counted_positions(const std::vector<uint8_t>& loss_mask) {
  std::vector<int64_t> positions;
  for (size_t t = 0; t < loss_mask.size(); ++t) {
    if (loss_mask[t] != 0) positions.push_back(static_cast<int64_t>(t));
  }
  return at::tensor(positions, at::kLong);
}

}  // namespace

void describe(Schema& schema, DistillationOptions& o) {
  schema.choice<KlDirection>("kl", o.kl, {{"forward", KlDirection::forward}, {"reverse", KlDirection::reverse}},
                             "forward: KL(teacher || student); reverse: KL(student || teacher)");
  schema.real("temperature", o.temperature, 0.01, 100.0, "softmax temperature of both models in the loss");
}

DistillationResult distill(const HeadWeights& head, const at::Tensor& teacher_TD, const at::Tensor& student_TD,
                           const std::vector<uint8_t>& loss_mask, const DistillationOptions& options,
                           double gradient_scale) {
  TORCH_CHECK(static_cast<int64_t>(loss_mask.size()) == student_TD.size(0), "one loss-mask entry a token");
  const at::Tensor positions_N = counted_positions(loss_mask).to(student_TD.device());
  DistillationResult result;
  if (positions_N.numel() == 0) {
    result.dstudent_TD = at::zeros_like(student_TD);
    return result;
  }

  at::AutoGradMode with_grad(true);
  const at::Tensor student_leaf_TD = student_TD.detach().set_requires_grad(true);
  const at::Tensor student_normed_ND =
      rms_norm(student_leaf_TD.index_select(0, positions_N), head.final_norm_D, head.rms_norm_eps);
  at::Tensor dnormed_ND;
  {
    const at::NoGradGuard no_grad;
    const at::Tensor teacher_normed_ND =
        rms_norm(teacher_TD.index_select(0, positions_N), head.final_norm_D, head.rms_norm_eps);
    const double loss_scale = options.temperature * options.temperature;
    dnormed_ND = at::empty_like(student_normed_ND);
    // Chunks of equal size: the GEMM's rate falls with the rows that a last, small one would have.
    const int64_t num_positions = positions_N.numel();
    const int64_t most = LogitTiles::max_positions(head.head_VD.size(0));
    const int64_t num_chunks = (num_positions + most - 1) / most;
    LogitTiles tiles(head.head_VD, (num_positions + num_chunks - 1) / num_chunks);
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      const int64_t begin = num_positions * chunk / num_chunks, end = num_positions * (chunk + 1) / num_chunks;
      const at::Tensor kl_C = tiles.kl(teacher_normed_ND.slice(0, begin, end), student_normed_ND.slice(0, begin, end),
                                       options.kl, options.temperature);
      result.kl_sum += ordered_sum(kl_C) * loss_scale;
      dnormed_ND.slice(0, begin, end).copy_(tiles.gradient().mul_(loss_scale * gradient_scale));
    }
  }
  result.dstudent_TD = torch::autograd::grad({student_normed_ND}, {student_leaf_TD}, {dnormed_ND})[0];
  return result;
}

HeadComparison compare_heads(const HeadWeights& head, const at::Tensor& teacher_TD, const at::Tensor& student_TD,
                             const std::vector<int32_t>& tokens) {
  const at::NoGradGuard no_grad;
  const int64_t num_tokens = teacher_TD.size(0);
  const at::Tensor ids_T =
      at::tensor(at::ArrayRef<int32_t>(tokens.data(), tokens.size()), at::kInt).to(at::kLong).to(teacher_TD.device());
  std::vector<at::Tensor> kl, same, teacher_nll, student_nll;
  for (int64_t begin = 0; begin < num_tokens; begin += kChunkRows) {
    const int64_t end = std::min(begin + kChunkRows, num_tokens);
    const auto log_p = [&](const at::Tensor& x_TD) {
      return log_probabilities(rms_norm(x_TD.slice(0, begin, end), head.final_norm_D, head.rms_norm_eps), head.head_VD,
                               1.0);
    };
    const at::Tensor log_teacher_CV = log_p(teacher_TD), log_student_CV = log_p(student_TD);
    kl.push_back(at::sum(at::exp(log_teacher_CV) * (log_teacher_CV - log_student_CV), -1));
    same.push_back(at::eq(at::argmax(log_teacher_CV, -1), at::argmax(log_student_CV, -1)).to(at::kFloat));
    const int64_t predicted = std::min(end, num_tokens - 1) - begin;
    if (predicted > 0) {
      const at::Tensor next_C1 = ids_T.slice(0, begin + 1, begin + 1 + predicted).unsqueeze(1);
      teacher_nll.push_back(-log_teacher_CV.slice(0, 0, predicted).gather(1, next_C1).squeeze(1));
      student_nll.push_back(-log_student_CV.slice(0, 0, predicted).gather(1, next_C1).squeeze(1));
    }
  }
  const auto join = [](const std::vector<at::Tensor>& parts) {
    return parts.empty() ? at::empty({0}, at::kFloat) : at::cat(parts);
  };
  return {join(kl), join(same), join(teacher_nll), join(student_nll)};
}

}  // namespace dms
