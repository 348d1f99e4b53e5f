// The frozen weights as the model code sees them: one layer at a time, from a source that may map a file, hold a
// replica or gather shards.  Nothing here ever requires a gradient.
#pragma once

#include <ATen/ATen.h>

#include <array>

#include "model/architecture.h"

namespace dms {

// Linear weights are stored [out, in].  Optional tensors are undefined where the family has none.
struct LayerWeights {
  at::Tensor input_norm;              // [D]
  at::Tensor q_proj;                  // [H*d, D]
  at::Tensor k_proj;                  // [G*d, D]
  at::Tensor v_proj;                  // [G*d, D]
  at::Tensor o_proj;                  // [D, H*d]
  at::Tensor q_bias, k_bias, v_bias;  // Qwen2: [H*d], [G*d], [G*d]
  at::Tensor q_norm, k_norm;          // Qwen3: [d]
  at::Tensor post_norm;               // [D]
  at::Tensor gate_proj;               // [I, D]
  at::Tensor up_proj;                 // [I, D]
  at::Tensor down_proj;               // [D, I]
};
// All of them, for those who move a layer about.
inline constexpr std::array kLayerTensors = {
    &LayerWeights::input_norm, &LayerWeights::q_proj,    &LayerWeights::k_proj,    &LayerWeights::v_proj,
    &LayerWeights::o_proj,     &LayerWeights::q_bias,    &LayerWeights::k_bias,    &LayerWeights::v_bias,
    &LayerWeights::q_norm,     &LayerWeights::k_norm,    &LayerWeights::post_norm, &LayerWeights::gate_proj,
    &LayerWeights::up_proj,    &LayerWeights::down_proj,
};
static_assert(sizeof(LayerWeights) == kLayerTensors.size() * sizeof(at::Tensor), "a tensor of the layer is not listed");

// Rows [begin, begin + n) of the embedding or of the head.
struct VocabularySlice {
  int64_t begin = 0;
  at::Tensor rows_VD;
};
// Slices begin at multiples of this, the columns of logits that one product computes on a CPU: so that its results do
// not depend on where slices begin.
inline constexpr int64_t kVocabularyTile = 1024;

// For one thread at a time.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual const Architecture& architecture() const = 0;
  virtual at::ScalarType dtype() const = 0;
  // The tensors stay valid as long as the caller holds them.
  virtual LayerWeights layer(int64_t index) = 0;
  virtual at::Tensor embedding() = 0;   // [V, D]
  virtual at::Tensor final_norm() = 0;  // [D]
  virtual at::Tensor head() = 0;        // [V, D]; the embedding when tied

  // The same in slices, in the order of the vocabulary: how a training step reads them, because a source may never hold
  // them whole.
  virtual int64_t num_vocabulary_slices() const { return 1; }
  virtual VocabularySlice embedding_slice(int64_t) { return {0, embedding()}; }
  virtual VocabularySlice head_slice(int64_t) { return {0, head()}; }
};

}  // namespace dms
