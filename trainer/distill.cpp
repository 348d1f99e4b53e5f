#include "trainer/distill.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <memory>

#include "model/block.h"
#include "trainer/ordered_sum.h"

namespace dms {

namespace {

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

namespace {

// One sample on its way through the head.
class SampleLoss {
 public:
  SampleLoss(WeightSource& source, const DistillationSample& sample, const DistillationOptions& options)
      : loss_scale_(options.temperature * options.temperature) {
    TORCH_CHECK(static_cast<int64_t>(sample.loss_mask.size()) == sample.student_TD.size(0), "one mask entry a token");
    const at::Tensor positions_N = counted_positions(sample.loss_mask).to(sample.student_TD.device());
    student_leaf_TD_ = sample.student_TD.detach().set_requires_grad(true);
    const double eps = source.architecture().rms_norm_eps;
    {
      const at::AutoGradMode with_grad(true);
      student_normed_ND_ = rms_norm(student_leaf_TD_.index_select(0, positions_N), source.final_norm(), eps);
    }
    const at::NoGradGuard no_grad;
    const at::Tensor teacher_normed_ND =
        rms_norm(sample.teacher_TD.index_select(0, positions_N), source.final_norm(), eps);
    // Chunks of equal size: the GEMM's rate falls with the rows that a last, small one would have.
    const int64_t num_positions = positions_N.numel();
    const int64_t most = LogitTiles::max_positions(source.architecture().vocab_size);
    const int64_t num_chunks = (num_positions + most - 1) / most;
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      const int64_t begin = num_positions * chunk / num_chunks, end = num_positions * (chunk + 1) / num_chunks;
      chunks_.emplace_back(teacher_normed_ND.slice(0, begin, end), student_normed_ND_.detach().slice(0, begin, end),
                           options.kl, options.temperature);
    }
  }

  std::vector<LogitTiles>& chunks() { return chunks_; }
  int64_t positions_of_a_chunk() const { return chunks_.empty() ? 0 : chunks_.back().num_positions(); }

  // Once a chunk.
  double kl_sum(LogitTiles& chunk) const { return ordered_sum(chunk.kl()) * loss_scale_; }
  double kl_sum() {
    double sum = 0.0;
    for (LogitTiles& chunk : chunks_) sum += kl_sum(chunk);
    return sum;
  }

  // Of gradient_scale times the sum, with respect to the student's residual stream.  Consumes the chunks.
  at::Tensor gradient_TD(double gradient_scale) {
    if (chunks_.empty()) return at::zeros_like(student_leaf_TD_);
    const at::Tensor dnormed_ND = at::empty_like(student_normed_ND_);
    int64_t begin = 0;
    for (LogitTiles& chunk : chunks_) {
      const int64_t end = begin + chunk.num_positions();
      dnormed_ND.slice(0, begin, end).copy_(chunk.gradient().mul_(loss_scale_ * gradient_scale));
      begin = end;
    }
    chunks_.clear();
    return torch::autograd::grad({student_normed_ND_}, {student_leaf_TD_}, {dnormed_ND})[0];
  }

 private:
  const double loss_scale_;
  at::Tensor student_leaf_TD_, student_normed_ND_;
  std::vector<LogitTiles> chunks_;
};

// The head whole: a chunk's logits stay until their gradient is taken.
DistillationResult distill_whole(WeightSource& source, const DistillationSample& sample,
                                 const DistillationOptions& options, double gradient_scale) {
  SampleLoss loss(source, sample, options);
  DistillationResult result;
  {
    const at::NoGradGuard no_grad;
    const VocabularySlice head = source.head_slice(0);
    LogitBuffers buffers(loss.positions_of_a_chunk(), true);
    for (LogitTiles& chunk : loss.chunks()) {
      chunk.add(head, buffers);
      result.kl_sum += loss.kl_sum(chunk);
      chunk.add_gradient(head, buffers);
    }
  }
  result.dstudent_TD = loss.gradient_TD(gradient_scale);
  return result;
}

// All samples on their way through a head that comes in slices.  Logits of as many positions as one chunk may have are
// kept for the gradient, the others computed again.
class SlicedHead {
 public:
  SlicedHead(WeightSource& source, const std::vector<DistillationSample>& samples, const DistillationOptions& options,
             bool with_gradient)
      : source_(source) {
    for (const DistillationSample& sample : samples) losses_.emplace_back(source, sample, options);
    int64_t room = with_gradient ? LogitTiles::max_positions(source.architecture().vocab_size) : 0, most = 0;
    for (SampleLoss& loss : losses_) {
      for (LogitTiles& chunk : loss.chunks()) {
        const bool keep = chunk.num_positions() <= room;
        if (keep) room -= chunk.num_positions();
        chunks_.push_back({&chunk, keep ? std::make_shared<LogitBuffers>(chunk.num_positions(), true) : nullptr});
        most = std::max(most, chunk.num_positions());
      }
    }
    const auto one_tile = std::make_shared<LogitBuffers>(most, false);
    for (Chunk& chunk : chunks_) {
      if (chunk.buffers == nullptr) chunk.buffers = one_tile;
    }
  }

  std::vector<SampleLoss>& losses() { return losses_; }

  void walk_up() {
    const at::NoGradGuard no_grad;
    for (int64_t i = 0; i < source_.num_vocabulary_slices(); ++i) {
      const VocabularySlice head = source_.head_slice(i);
      for (Chunk& chunk : chunks_) chunk.tiles->add(head, *chunk.buffers);
    }
  }

  // After the KL.
  void walk_down() {
    const at::NoGradGuard no_grad;
    for (int64_t i = source_.num_vocabulary_slices() - 1; i >= 0; --i) {
      const VocabularySlice head = source_.head_slice(i);
      for (Chunk& chunk : chunks_) chunk.tiles->add_gradient(head, *chunk.buffers);
    }
    chunks_.clear();
  }

 private:
  struct Chunk {
    LogitTiles* tiles;
    std::shared_ptr<LogitBuffers> buffers;
  };
  WeightSource& source_;
  std::vector<SampleLoss> losses_;
  std::vector<Chunk> chunks_;
};

}  // namespace

std::vector<DistillationResult> distill(WeightSource& source, std::vector<DistillationSample> samples,
                                        const DistillationOptions& options, double gradient_scale) {
  std::vector<DistillationResult> results;
  if (source.num_vocabulary_slices() == 1) {
    source.head_slice(0);  // by all ranks, those too that have no sample
    for (DistillationSample& sample : samples) {
      results.push_back(distill_whole(source, sample, options, gradient_scale));
      sample = {};
    }
    return results;
  }
  SlicedHead head(source, samples, options, true);
  samples.clear();
  head.walk_up();
  for (SampleLoss& loss : head.losses()) results.push_back({loss.kl_sum(), {}});
  head.walk_down();
  for (size_t s = 0; s < results.size(); ++s) results[s].dstudent_TD = head.losses()[s].gradient_TD(gradient_scale);
  return results;
}

std::vector<double> kl_sums(WeightSource& source, const std::vector<DistillationSample>& samples,
                            const DistillationOptions& options) {
  SlicedHead head(source, samples, options, false);
  head.walk_up();
  std::vector<double> sums;
  for (SampleLoss& loss : head.losses()) sums.push_back(loss.kl_sum());
  return sums;
}

HeadComparison compare_heads(const HeadWeights& head, const at::Tensor& teacher_TD, const at::Tensor& student_TD,
                             const std::vector<int32_t>& tokens) {
  const at::NoGradGuard no_grad;
  const int64_t num_tokens = teacher_TD.size(0), vocab_size = head.head_VD.size(0);
  const at::Tensor ids_T =
      at::tensor(at::ArrayRef<int32_t>(tokens.data(), tokens.size()), at::kInt).to(at::kLong).to(teacher_TD.device());
  const at::Tensor next_T = at::cat({ids_T.slice(0, 1), ids_T.slice(0, 0, 1)});  // the last one is not read
  const auto f32 = at::TensorOptions(teacher_TD.device()).dtype(at::kFloat);
  HeadComparison comparison{at::empty({num_tokens}, f32), at::empty({num_tokens}, f32), at::empty({num_tokens}, f32),
                            at::empty({num_tokens}, f32)};
  const int64_t most = std::min(num_tokens, LogitTiles::max_positions(vocab_size));
  LogitBuffers buffers(most, true);
  for (int64_t begin = 0; begin < num_tokens; begin += most) {
    const int64_t end = std::min(begin + most, num_tokens), rows = end - begin;
    const at::Tensor teacher_CD = rms_norm(teacher_TD.slice(0, begin, end), head.final_norm_D, head.rms_norm_eps),
                     student_CD = rms_norm(student_TD.slice(0, begin, end), head.final_norm_D, head.rms_norm_eps);
    LogitTiles tiles(teacher_CD, student_CD, KlDirection::forward, 1.0);
    tiles.add({0, head.head_VD}, buffers);
    comparison.kl_T.slice(0, begin, end).copy_(tiles.kl());
    const at::Tensor top1_M = tiles.top1_M(buffers, vocab_size);
    comparison.same_top1_T.slice(0, begin, end).copy_(top1_M.slice(0, 0, rows) == top1_M.slice(0, rows));
    const at::Tensor next_CD = head.head_VD.index_select(0, next_T.slice(0, begin, end)).to(at::kFloat);
    const auto nll_C = [&](const at::Tensor& normed_CD, const at::Tensor& lse_C) {
      return lse_C - at::sum(normed_CD.to(at::kFloat) * next_CD, -1);
    };
    comparison.teacher_nll_T.slice(0, begin, end).copy_(nll_C(teacher_CD, tiles.lse_M().slice(0, 0, rows)));
    comparison.student_nll_T.slice(0, begin, end).copy_(nll_C(student_CD, tiles.lse_M().slice(0, rows)));
  }
  comparison.teacher_nll_T = comparison.teacher_nll_T.slice(0, 0, num_tokens - 1);
  comparison.student_nll_T = comparison.student_nll_T.slice(0, 0, num_tokens - 1);
  return comparison;
}

}  // namespace dms
