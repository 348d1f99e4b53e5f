// One training step.  If you read one file of this project, read step.cpp.
//
// Teacher and student share one copy of the frozen weights.  All samples of the global batch run forward together,
// layer outermost and sample inside, so that each layer's weights are brought in once; then the compression loss is
// known; then the backward pass runs from the last layer to the first, producing gradients of activations and adapter
// parameters only.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "data/sample_order.h"
#include "model/adapter.h"
#include "model/decoder.h"
#include "model/weights.h"
#include "trainer/compression.h"
#include "trainer/distill.h"

namespace dms {

// What the backward pass recomputes.  Losses and gradients are bit-equal between the two.
//   full  each layer runs again from its saved input: memory of one layer
//   none  every layer's graph is kept from the forward pass: fastest, most memory
enum class ActivationCheckpointing { automatic, full, none };

struct StepOptions {
  EvictionOptions eviction;
  CompressionOptions compression;
  DistillationOptions distillation;
  ActivationCheckpointing checkpointing = ActivationCheckpointing::full;
  bool attend_across_documents = true;
  uint64_t seed = 0;
};

struct StepResult {
  double kl = 0.0;  // nats per counted token
  double compression_loss = 0.0;
  double loss = 0.0;  // kl + compression_loss
  double target_cr = 1.0;
  double alpha_mean = 0.0;            // the counted fraction, soft
  double eviction_rate = 0.0;         // share of noiseless logits > 0 over the counted keys
  std::vector<at::Tensor> gradients;  // one a parameter, in Adapter::parameters() order
};

// Samples [first_sample, first_sample + batch.size()) of the run, all of one length.
StepResult training_step(WeightSource& source, const Adapter& adapter, const StepOptions& options,
                         const RopeTables& rope, int64_t step, int64_t first_sample, const std::vector<Sample>& batch);

// Bytes of layer graphs that `none` keeps for one sample, from closed-form tensor counts.
int64_t kept_graph_bytes(const Architecture& architecture, int64_t num_tokens, int64_t element_bytes);

}  // namespace dms
