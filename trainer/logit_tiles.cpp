#include "trainer/logit_tiles.h"

#include <algorithm>

namespace dms {

namespace {

constexpr int64_t kLogitBytes = int64_t{256} << 20;
// On a CPU: wide enough for the GEMM, narrow enough for a tile of both models to stay in cache until it is reduced.
constexpr int64_t kCpuTileColumns = 1024;

}  // namespace

int64_t LogitTiles::max_positions(int64_t vocab_size) {
  return std::max<int64_t>(1, kLogitBytes / (2 * static_cast<int64_t>(sizeof(float)) * vocab_size));
}

LogitTiles::LogitTiles(const at::Tensor& head_VD, int64_t positions) : head_VD_(head_VD) {
  const auto options = head_VD.options().dtype(at::kFloat);
  const int64_t vocab_size = head_VD.size(0);
  const int64_t columns = std::min(vocab_size, head_VD.is_cpu() ? kCpuTileColumns : vocab_size);
  for (int64_t begin = 0; begin < vocab_size; begin += columns) {
    const int64_t end = std::min(vocab_size, begin + columns);
    tiles_.push_back({begin, end, at::empty({2 * positions, end - begin}, options), {}});
  }
  scratch_CV_ = at::empty({positions, columns}, options);
}

at::Tensor LogitTiles::kl(const at::Tensor& normed_teacher_CD, const at::Tensor& normed_student_CD,
                          KlDirection direction, double temperature) {
  direction_ = direction;
  temperature_ = temperature;
  positions_ = normed_teacher_CD.size(0);
  const at::Tensor normed_MD = at::cat({normed_teacher_CD, normed_student_CD});
  std::vector<at::Tensor> tile_lse_M, weighted_difference_C;
  for (Tile& tile : tiles_) {
    at::Tensor logits_MV = tile.logits_MV.slice(0, 0, 2 * positions_);
    const at::Tensor head_DV = head_VD_.slice(0, tile.begin, tile.end).t();
    if (head_DV.scalar_type() == at::kFloat) {
      at::mm_out(logits_MV, normed_MD, head_DV);
    } else {
      logits_MV.copy_(at::matmul(normed_MD, head_DV));
    }
    if (temperature != 1.0) logits_MV.div_(temperature);
    at::Tensor teacher_CV = logits_MV.slice(0, 0, positions_), student_CV = logits_MV.slice(0, positions_);
    at::Tensor difference_CV = scratch_CV_.slice(0, 0, positions_).slice(1, 0, tile.end - tile.begin);
    tile.max_M1 = at::amax(logits_MV, {-1}, true);
    if (direction == KlDirection::forward) {
      at::sub_out(difference_CV, teacher_CV, student_CV);
    } else {
      at::sub_out(difference_CV, student_CV, teacher_CV);
    }
    logits_MV.sub_(tile.max_M1).exp_();
    tile_lse_M.push_back(at::sum(logits_MV, -1).log_().add_(tile.max_M1.squeeze(1)));
    const at::Tensor& weight_CV = direction == KlDirection::forward ? teacher_CV : student_CV;
    if (direction == KlDirection::reverse)
      teacher_CV.copy_(difference_CV);  // all that its gradient needs of the teacher
    weighted_difference_C.push_back(at::sum(difference_CV.mul_(weight_CV), -1));
  }
  lse_M_ = at::logsumexp(at::stack(tile_lse_M), 0);

  const at::Tensor lse_teacher_C = lse_M_.slice(0, 0, positions_), lse_student_C = lse_M_.slice(0, positions_);
  const bool forward = direction == KlDirection::forward;
  kl_C_ = forward ? lse_student_C - lse_teacher_C : lse_teacher_C - lse_student_C;
  for (size_t i = 0; i < tiles_.size(); ++i) {
    const at::Tensor max_C =
        tiles_[i].max_M1.squeeze(1).slice(0, forward ? 0 : positions_, forward ? positions_ : 2 * positions_);
    kl_C_.add_(weighted_difference_C[i] * at::exp(max_C - (forward ? lse_teacher_C : lse_student_C)));
  }
  return kl_C_;
}

// forward  d KL / d student logit = p_student - p_teacher
// reverse  d KL / d student logit = p_student (log p_student - log p_teacher - KL)
at::Tensor LogitTiles::gradient() {
  at::Tensor gradient_CD = at::zeros({positions_, head_VD_.size(1)}, lse_M_.options());
  for (const Tile& tile : tiles_) {
    const at::Tensor probability_scale_M1 = at::exp(tile.max_M1 - lse_M_.unsqueeze(1));
    at::Tensor teacher_CV = tile.logits_MV.slice(0, 0, positions_);
    at::Tensor student_CV = tile.logits_MV.slice(0, positions_, 2 * positions_);
    student_CV.mul_(probability_scale_M1.slice(0, positions_));
    if (direction_ == KlDirection::forward) {
      student_CV.sub_(teacher_CV.mul_(probability_scale_M1.slice(0, 0, positions_)));
    } else {
      const at::Tensor shift_C = lse_M_.slice(0, 0, positions_) - lse_M_.slice(0, positions_) - kl_C_;
      student_CV.mul_(teacher_CV.add_(shift_C.unsqueeze(1)));
    }
    const at::Tensor head_VD = head_VD_.slice(0, tile.begin, tile.end);
    if (head_VD.scalar_type() == at::kFloat) {
      gradient_CD.addmm_(student_CV, head_VD);
    } else {  // tiles are summed in float32
      gradient_CD.add_(at::matmul(student_CV.to(head_VD.scalar_type()), head_VD));
    }
  }
  return gradient_CD.div_(temperature_);
}

}  // namespace dms
