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
#include "model/student_layer.h"
#include "model/weights.h"
#include "trainer/compression.h"
#include "trainer/distill.h"
#include "trainer/ranks.h"

namespace dms {

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

// A global batch of samples of one length, of which `first_sample` is the first one's index in the run and `batch` this
// rank's share: the ranks' shares are contiguous, in rank order, none empty.  All ranks call together and get the same
// result, with the same bits on any number of ranks.
StepResult training_step(WeightSource& source, const Adapter& adapter, const StepOptions& options,
                         const RopeTables& rope, int64_t step, int64_t first_sample, const std::vector<Sample>& batch,
                         RankGroup& ranks);

}  // namespace dms
