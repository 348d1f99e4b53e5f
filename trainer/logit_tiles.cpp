#include "trainer/logit_tiles.h"

#include <algorithm>

namespace dms {

namespace {

constexpr int64_t kLogitBytes = int64_t{256} << 20;

at::Tensor first_rows(at::Tensor& buffer, int64_t most_rows, int64_t rows, int64_t columns,
                      const at::TensorOptions& options) {
  if (!buffer.defined() || buffer.numel() < rows * columns) buffer = at::empty({most_rows * columns}, options);
  return buffer.slice(0, 0, rows * columns).view({rows, columns});
}

// On a CPU tiles are wide enough for the GEMM and narrow enough for both models' to stay in cache until they are
// reduced; a GPU takes a slice at once.
int64_t tile_columns(const at::Tensor& head_VD) { return head_VD.is_cpu() ? kVocabularyTile : head_VD.size(0); }

}  // namespace

at::Tensor LogitBuffers::logits(size_t tile, int64_t positions, int64_t columns, const at::TensorOptions& options) {
  const size_t i = keep_ ? tile : 0;
  if (i >= logits_.size()) logits_.resize(i + 1);
  return first_rows(logits_[i], 2 * positions_, 2 * positions, columns, options);
}

at::Tensor LogitBuffers::scratch(int64_t positions, int64_t columns, const at::TensorOptions& options) {
  return first_rows(scratch_, positions_, positions, columns, options);
}

int64_t LogitTiles::max_positions(int64_t vocab_size) {
  return std::max<int64_t>(1, kLogitBytes / (2 * static_cast<int64_t>(sizeof(float)) * vocab_size));
}

LogitTiles::LogitTiles(const at::Tensor& normed_teacher_CD, const at::Tensor& normed_student_CD, KlDirection direction,
                       double temperature)
    : normed_teacher_CD_(normed_teacher_CD),
      normed_student_CD_(normed_student_CD),
      direction_(direction),
      temperature_(temperature) {}

LogitTiles::Tile LogitTiles::compute(const at::Tensor& normed_MD, const at::Tensor& head_VD, at::Tensor logits_MV,
                                     at::Tensor difference_CV) const {
  Tile tile;
  const at::Tensor head_DV = head_VD.t();
  if (head_DV.scalar_type() == at::kFloat) {
    at::mm_out(logits_MV, normed_MD, head_DV);
  } else {
    logits_MV.copy_(at::matmul(normed_MD, head_DV));
  }
  if (temperature_ != 1.0) logits_MV.div_(temperature_);
  at::Tensor teacher_CV = logits_MV.slice(0, 0, num_positions()), student_CV = logits_MV.slice(0, num_positions());
  tile.max_M1 = at::amax(logits_MV, {-1}, true);
  if (direction_ == KlDirection::forward) {
    at::sub_out(difference_CV, teacher_CV, student_CV);
  } else {
    at::sub_out(difference_CV, student_CV, teacher_CV);
  }
  logits_MV.sub_(tile.max_M1).exp_();
  tile.lse_M = at::sum(logits_MV, -1).log_().add_(tile.max_M1.squeeze(1));
  const at::Tensor& weight_CV = direction_ == KlDirection::forward ? teacher_CV : student_CV;
  // All that its gradient needs of the teacher.
  if (direction_ == KlDirection::reverse) teacher_CV.copy_(difference_CV);
  tile.weighted_difference_C = at::sum(difference_CV.mul_(weight_CV), -1);
  return tile;
}

void LogitTiles::add(const VocabularySlice& head, LogitBuffers& buffers) {
  const at::Tensor normed_MD = at::cat({normed_teacher_CD_, normed_student_CD_});
  const auto options = normed_MD.options().dtype(at::kFloat);
  const int64_t rows = head.rows_VD.size(0), columns = tile_columns(head.rows_VD);
  for (int64_t first = 0; first < rows; first += columns) {
    const int64_t width = std::min(columns, rows - first);
    Tile tile = compute(normed_MD, head.rows_VD.slice(0, first, first + width),
                        buffers.logits(tiles_.size(), num_positions(), width, options),
                        buffers.scratch(num_positions(), width, options));
    tile.begin = head.begin + first;
    tiles_.push_back(std::move(tile));
  }
}

at::Tensor LogitTiles::kl() {
  std::vector<at::Tensor> tile_lse_M;
  for (const Tile& tile : tiles_) tile_lse_M.push_back(tile.lse_M);
  lse_M_ = at::logsumexp(at::stack(tile_lse_M), 0);
  const at::Tensor lse_teacher_C = lse_M_.slice(0, 0, num_positions()),
                   lse_student_C = lse_M_.slice(0, num_positions());
  const bool forward = direction_ == KlDirection::forward;
  kl_C_ = forward ? lse_student_C - lse_teacher_C : lse_teacher_C - lse_student_C;
  for (Tile& tile : tiles_) {
    const at::Tensor max_C =
        tile.max_M1.squeeze(1).slice(0, forward ? 0 : num_positions(), forward ? num_positions() : 2 * num_positions());
    kl_C_.add_(tile.weighted_difference_C * at::exp(max_C - (forward ? lse_teacher_C : lse_student_C)));
    tile.lse_M.reset();
    tile.weighted_difference_C.reset();
  }
  return kl_C_;
}

at::Tensor LogitTiles::top1_M(LogitBuffers& buffers, int64_t vocab_size) const {
  TORCH_CHECK(direction_ == KlDirection::forward && buffers.keep(), "the logits of this chunk are gone");
  std::vector<at::Tensor> max_M;
  for (const Tile& tile : tiles_) max_M.push_back(tile.max_M1.squeeze(1));
  const at::Tensor best_M = at::argmax(at::stack(max_M), 0);
  at::Tensor top1_M = at::empty_like(best_M);
  for (size_t i = 0; i < tiles_.size(); ++i) {
    const at::Tensor rows_N = at::nonzero(best_M == static_cast<int64_t>(i)).squeeze(1);
    if (rows_N.numel() == 0) continue;
    const int64_t end = i + 1 < tiles_.size() ? tiles_[i + 1].begin : vocab_size;
    const at::Tensor logits_MV = buffers.logits(i, num_positions(), end - tiles_[i].begin, lse_M_.options());
    top1_M.index_copy_(0, rows_N, at::argmax(logits_MV.index_select(0, rows_N), -1).add_(tiles_[i].begin));
  }
  return top1_M;
}

void LogitTiles::add_gradient(const VocabularySlice& head, LogitBuffers& buffers) {
  if (!gradient_CD_.defined()) gradient_CD_ = at::zeros({num_positions(), head.rows_VD.size(1)}, lse_M_.options());
  const at::Tensor normed_MD = buffers.keep() ? at::Tensor() : at::cat({normed_teacher_CD_, normed_student_CD_});
  const int64_t rows = head.rows_VD.size(0), columns = tile_columns(head.rows_VD);
  for (int64_t first = (rows - 1) / columns * columns; first >= 0; first -= columns) {
    const int64_t width = std::min(columns, rows - first);
    const auto tile = std::find_if(tiles_.begin(), tiles_.end(),
                                   [&](const Tile& candidate) { return candidate.begin == head.begin + first; });
    TORCH_CHECK(tile != tiles_.end(), "the second walk meets a tile that the first did not");
    const at::Tensor head_VD = head.rows_VD.slice(0, first, first + width);
    at::Tensor logits_MV =
        buffers.logits(static_cast<size_t>(tile - tiles_.begin()), num_positions(), width, lse_M_.options());
    if (!buffers.keep()) {
      compute(normed_MD, head_VD, logits_MV, buffers.scratch(num_positions(), width, lse_M_.options()));
    }
    add_gradient(*tile, head_VD, logits_MV);
  }
}

// forward  d KL / d student logit = p_student - p_teacher
// reverse  d KL / d student logit = p_student (log p_student - log p_teacher - KL)
void LogitTiles::add_gradient(const Tile& tile, const at::Tensor& head_VD, const at::Tensor& logits_MV) {
  const at::Tensor probability_scale_M1 = at::exp(tile.max_M1 - lse_M_.unsqueeze(1));
  at::Tensor teacher_CV = logits_MV.slice(0, 0, num_positions()), student_CV = logits_MV.slice(0, num_positions());
  student_CV.mul_(probability_scale_M1.slice(0, num_positions()));
  if (direction_ == KlDirection::forward) {
    student_CV.sub_(teacher_CV.mul_(probability_scale_M1.slice(0, 0, num_positions())));
  } else {
    const at::Tensor shift_C = lse_M_.slice(0, 0, num_positions()) - lse_M_.slice(0, num_positions()) - kl_C_;
    student_CV.mul_(teacher_CV.add_(shift_C.unsqueeze(1)));
  }
  if (head_VD.scalar_type() == at::kFloat) {
    gradient_CD_.addmm_(student_CV, head_VD);
  } else {  // tiles are summed in float32
    gradient_CD_.add_(at::matmul(student_CV.to(head_VD.scalar_type()), head_VD));
  }
}

at::Tensor LogitTiles::gradient() { return gradient_CD_.div_(temperature_); }

}  // namespace dms
