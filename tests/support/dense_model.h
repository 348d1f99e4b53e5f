// The whole network in float64 straight from its definition: dense [T, T] attention, plain ATen operators, recorded by
// autograd from the adapter's parameters to the logits.  Shares no arithmetic with model/ except the rotary tables and
// the dense attention reference, which have tests of their own.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "model/adapter.h"
#include "model/weights.h"

namespace dms {

// What a student's layer does to its attention scores.
struct DenseEviction {
  at::Tensor bias_GT;   // added to key t's scores beyond the window
  at::Tensor kept_Hdd;  // each head's queries are multiplied by it; undefined: nothing is taken out
};
using DenseEvictor = std::function<DenseEviction(int64_t layer, const at::Tensor& x_TD, const at::Tensor& normed_TD)>;

// Log-probabilities of the next token, [T, V].  Without an evictor: the teacher's.
at::Tensor dense_log_probabilities_TV(WeightSource& source, const std::vector<int32_t>& tokens,
                                      const DocumentOffsets& documents, int64_t window = 0,
                                      const DenseEvictor& evictor = {});

// Float64 copies of the adapter's parameters by name, leaves that require gradients.
using DenseParameters = std::map<std::string, at::Tensor>;
DenseParameters dense_parameters(const Adapter& adapter);

// The eviction logit's formula, written out from the parameters.
at::Tensor dense_eviction_logit_GT(const Adapter& adapter, const EvictionOptions& eviction,
                                   const DenseParameters& parameters, double rms_norm_eps, int64_t layer,
                                   const at::Tensor& x_TD, const at::Tensor& normed_TD);

// Identity less the projection on what the adapter borrows, per head; undefined when it borrows nothing.
at::Tensor dense_kept_queries_Hdd(const Adapter& adapter, const Architecture& architecture, int64_t layer);

// dec[g, t] = logit[g, t + shift] inside the document, -1e30 where there is no such token.
at::Tensor dense_decisions_GT(const at::Tensor& logit_GT, int64_t shift, const DocumentOffsets& documents);

// KL(p || q) of each row of log-probabilities.
at::Tensor dense_kl_T(const at::Tensor& log_p_TV, const at::Tensor& log_q_TV);

}  // namespace dms
