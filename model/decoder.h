// The teacher: the model as it came, one sequence, a layer at a time.  The student (model/student_layer.h) shares its
// weights and differs only in the attention bias and the borrowed query channel.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "model/eviction.h"
#include "model/rope.h"
#include "model/weights.h"

namespace dms {

// Rows of the embedding: the residual stream before layer 0, [T, D].
at::Tensor embed_tokens(WeightSource& source, const std::vector<int32_t>& tokens);
// The same for several sequences (or none) in one walk over the embedding's slices.
std::vector<at::Tensor> embed_sequences(WeightSource& source, const std::vector<std::vector<int32_t>>& sequences);

// What a layer needs besides weights and activations.
struct SequenceContext {
  const RopeTables& rope;            // for positions 0 .. T-1
  const DocumentOffsets& documents;  // {0, T} when attention crosses documents
};

// The teacher's layer, [T, D] -> [T, D]; not recorded for autograd.
at::Tensor teacher_layer(const Architecture& architecture, const LayerWeights& weights, const at::Tensor& x_TD,
                         const SequenceContext& sequence);

// The student's layer with every bias 0 and no borrowed channel: the teacher computed by the student's kernels, whose
// distance from the teacher is the numerical floor of every measured KL.
at::Tensor unbiased_student_layer(const Architecture& architecture, const LayerWeights& weights, int64_t window,
                                  AttentionPath path, const at::Tensor& x_TD, const SequenceContext& sequence);

}  // namespace dms
