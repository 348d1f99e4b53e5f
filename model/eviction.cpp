#include "model/eviction.h"

#include <algorithm>

namespace dms {

namespace {
// Far below any logit, yet finite after division by the smallest tau.
constexpr double kUndefinedDecision = -1e30;
// log(1 - sigmoid(z)) rounds to 0 in float32 below this.
constexpr double kKeptBelow = -17.0;
}  // namespace

void describe(Schema& schema, EvictionOptions& o) {
  schema.integer("window", o.window, 0, int64_t{1} << 24,
                 "tokens for which a key stays untouched: visible while q - k <= window");
  schema.integer("decision_shift", o.decision_shift, 0, 1,
                 "the decision about token t is read at token t + shift (0: the paper, FastDMS, and better where "
                 "measured; 1: NVIDIA's code)");
  schema.real("alpha_scale", o.alpha_scale, 1e-3, 1e6, "eviction logit = alpha_scale * x - alpha_offset + bias");
  schema.real("alpha_offset", o.alpha_offset, -1e6, 1e6, "the logit starts at -alpha_offset: nothing is evicted");
  schema.real("tau", o.tau, 1e-3, 10.0, "temperature of the relaxed decision in training");
  schema.real("truncate_at", o.truncate_at, 1.0, 1e9,
              "a relaxed decision (logit + noise) / tau at or above this is gone altogether, as at inference");
  schema.choice<AttentionPath>(
      "attention", o.attention,
      {{"auto", AttentionPath::automatic}, {"dense", AttentionPath::dense}, {"sparse", AttentionPath::sparse}},
      "far keys that training visits: dense: all, in two parts; sparse: those not gone; auto: whichever is less work");
}

at::Tensor decisions_GT(const at::Tensor& logit_GT, int64_t shift, const DocumentOffsets& documents) {
  if (shift == 0) return logit_GT;
  const int64_t num_tokens = logit_GT.size(1);
  std::vector<at::Tensor> parts;
  for (size_t j = 0; j + 1 < documents.size(); ++j) {
    const int64_t begin = documents[j], end = documents[j + 1];
    const int64_t undefined = std::min(shift, end - begin);
    parts.push_back(logit_GT.slice(1, begin + undefined, end));
    parts.push_back(at::full({logit_GT.size(0), undefined}, kUndefinedDecision, logit_GT.options()));
  }
  at::Tensor dec_GT = at::cat(parts, 1);
  TORCH_CHECK(dec_GT.size(1) == num_tokens, "document offsets do not cover the sequence");
  return dec_GT;
}

Relaxation relax(const at::Tensor& logit_GT, const at::Tensor& noise_GT, const EvictionOptions& options,
                 const DocumentOffsets& documents) {
  const at::Tensor token_z_GT = (logit_GT + noise_GT) / options.tau;
  const at::Tensor z_GT = decisions_GT(token_z_GT, options.decision_shift, documents);
  Relaxation relaxation;
  relaxation.token_alpha_GT = at::sigmoid(token_z_GT);
  relaxation.alpha_GT = at::sigmoid(z_GT);
  relaxation.bias_GT = at::log_sigmoid(-z_GT)
                           .masked_fill(z_GT.detach() <= kKeptBelow, 0.0)
                           .masked_fill(z_GT.detach() >= options.truncate_at, kGoneBias);
  return relaxation;
}

at::Tensor counted_keys_T(int64_t num_tokens, int64_t window, const DocumentOffsets& documents) {
  at::Tensor counted_T = at::zeros({num_tokens}, at::kFloat);
  float* counted = counted_T.data_ptr<float>();
  for (size_t j = 0; j + 1 < documents.size(); ++j) {
    for (int64_t k = documents[j]; k + window + 1 < documents[j + 1]; ++k) counted[k] = 1.0F;
  }
  return counted_T;
}

int64_t num_counted_keys(int64_t window, const DocumentOffsets& documents) {
  int64_t count = 0;
  for (size_t j = 0; j + 1 < documents.size(); ++j) {
    count += std::max<int64_t>(0, documents[j + 1] - documents[j] - window - 1);
  }
  return count;
}

}  // namespace dms
