// One decoder layer of the student under relaxed eviction, for one sequence: forward, and the backward pass that
// yields gradients of activations and adapter parameters only.
//
// The attention half (norm, projections, eviction logits, attention) is recorded by autograd, because adapters plug in
// there; the MLP half is written out (finish_layer_backward).  Before its window is full the student *is* the teacher,
// so only the rows beyond it are computed past attention, and only they carry a gradient.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "model/adapter.h"
#include "model/block.h"
#include "model/decoder.h"
#include "model/eviction.h"

namespace dms {

// What the backward pass computes again.  Losses and gradients are bit-equal between them.
//   full       the whole layer, from its saved input: least memory
//   selective  the MLP's two inner projections
//   none       nothing: fastest, most memory
enum class ActivationCheckpointing { automatic, full, selective, none };
// As recipes, programs and reports spell them.
const std::vector<std::pair<std::string, ActivationCheckpointing>>& activation_checkpointing_names();
std::string name_of(ActivationCheckpointing plan);

// Rows of a sequence of one document in which a student can differ from the teacher, as StudentRows counts them.
int64_t num_student_rows(const AdapterOptions& adapter, int64_t window, int64_t num_tokens);
// Bytes that autograd and the written-out half keep of one layer and sequence, beside its input, when nothing of the
// attention half is computed again.
int64_t recorded_layer_bytes(const Architecture& architecture, const AdapterOptions& adapter, int64_t window,
                             int64_t num_tokens, int64_t element_bytes);
// Bytes kept for one sequence between its forward and backward pass, all layers, from closed-form tensor counts.
int64_t kept_activation_bytes(ActivationCheckpointing plan, const Architecture& architecture,
                              const AdapterOptions& adapter, int64_t window, int64_t num_tokens, int64_t element_bytes);

// The rows of a sequence in which the student can differ from the teacher.
class StudentRows {
 public:
  // Those with a key beyond the window, or all where the adapter changes attention itself.
  StudentRows(const Adapter& adapter, int64_t window, const DocumentOffsets& documents);

  int64_t count() const { return count_; }
  const std::vector<std::pair<int64_t, int64_t>>& ranges() const { return ranges_; }
  // The student's rows of a tensor along `dim`.
  at::Tensor take(const at::Tensor& x, int64_t dim = 0) const;
  // `x` [T, ...] with the student's rows replaced.
  at::Tensor replace(const at::Tensor& x, const at::Tensor& rows) const;

 private:
  std::vector<std::pair<int64_t, int64_t>> ranges_;  // [begin, end), ascending
  int64_t count_ = 0;
};

class StudentLayer {
 public:
  struct Output {
    at::Tensor x_FD;      // the student's rows of the layer's output
    at::Tensor logit_GT;  // noiseless eviction logits
    Relaxation relaxation;
  };
  struct Gradients {
    std::vector<at::Tensor> parameters;  // in Adapter::layer_parameters() order
    at::Tensor dx_FD;                    // incomplete for layer 0: nothing below it is trained
  };

  // x_TD: the layer's input, whose rows outside `rows` are the teacher's.  References must outlive the object.
  StudentLayer(const Architecture& architecture, const Adapter& adapter, const EvictionOptions& eviction,
               const StudentRows& rows, int64_t layer, at::Tensor x_TD)
      : architecture_(architecture),
        adapter_(adapter),
        eviction_(eviction),
        rows_(rows),
        layer_(layer),
        x_TD_(std::move(x_TD)) {}

  Output forward(const LayerWeights& weights, const SequenceContext& sequence, const at::Tensor& noise_GT,
                 ActivationCheckpointing plan);

  // `noise_GT` as in forward.  dout_FD: gradient of the output rows; `dalpha_GT` that of the relaxation's alpha_GT or,
  // with `of_token_alpha`, of its token_alpha_GT.
  Gradients backward(const LayerWeights& weights, const SequenceContext& sequence, const at::Tensor& noise_GT,
                     const at::Tensor& dout_FD, const at::Tensor& dalpha_GT, bool of_token_alpha);

 private:
  // The recorded half.
  struct AttentionHalf {
    at::Tensor leaf_FD;  // the student's rows of the input
    at::Tensor logit_GT;
    Relaxation relaxation;
    at::Tensor attention_BHFd;
  };
  AttentionHalf run_attention(const LayerWeights& weights, const SequenceContext& sequence,
                              const at::Tensor& noise_GT) const;

  const Architecture& architecture_;
  const Adapter& adapter_;
  const EvictionOptions& eviction_;
  const StudentRows& rows_;
  const int64_t layer_;
  const at::Tensor x_TD_;
  AttentionHalf attention_;  // kept by every plan but `full`
  FinishState finish_;
};

}  // namespace dms
