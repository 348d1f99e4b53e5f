#include "model/hard_student.h"

#include <ATen/core/grad_mode.h>
#include <algorithm>

#include "model/block.h"

namespace dms {

namespace {

class AdapterPolicy final : public EvictionPolicy {
 public:
  AdapterPolicy(const Adapter& adapter, const EvictionOptions& eviction) : adapter_(adapter), eviction_(eviction) {}
  int64_t window() const override { return eviction_.window; }
  int64_t decision_shift() const override { return eviction_.decision_shift; }
  AdapterReading read(int64_t layer, const at::Tensor& x_nD, const at::Tensor& normed_nD,
                      const at::Tensor&) const override {
    return adapter_.read(layer, x_nD, normed_nD);
  }

 private:
  const Adapter& adapter_;
  const EvictionOptions eviction_;
};

class SinksAndWindowPolicy final : public EvictionPolicy {
 public:
  SinksAndWindowPolicy(int64_t num_kv_heads, int64_t num_sinks, int64_t num_live)
      : num_kv_heads_(num_kv_heads),
        num_sinks_(std::min(num_sinks, num_live - 1)),
        window_(num_live - 1 - num_sinks_) {}
  int64_t window() const override { return window_; }
  int64_t decision_shift() const override { return 0; }
  AdapterReading read(int64_t, const at::Tensor& x_nD, const at::Tensor&, const at::Tensor& position_n) const override {
    const at::Tensor beyond_sinks_n = position_n.to(at::kFloat) - static_cast<double>(num_sinks_) + 0.5;
    return {beyond_sinks_n.unsqueeze(0).expand({num_kv_heads_, x_nD.size(0)}), {}};
  }

 private:
  const int64_t num_kv_heads_, num_sinks_, window_;
};

class KeepEverythingPolicy final : public EvictionPolicy {
 public:
  explicit KeepEverythingPolicy(int64_t num_kv_heads) : num_kv_heads_(num_kv_heads) {}
  int64_t window() const override { return 0; }
  int64_t decision_shift() const override { return 0; }
  AdapterReading read(int64_t, const at::Tensor& x_nD, const at::Tensor&, const at::Tensor&) const override {
    return {at::full({num_kv_heads_, x_nD.size(0)}, -1.0, at::kFloat), {}};
  }

 private:
  const int64_t num_kv_heads_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> keep_everything_policy(int64_t num_kv_heads) {
  return std::make_unique<KeepEverythingPolicy>(num_kv_heads);
}

std::unique_ptr<EvictionPolicy> adapter_policy(const Adapter& adapter, const EvictionOptions& eviction) {
  return std::make_unique<AdapterPolicy>(adapter, eviction);
}

std::unique_ptr<EvictionPolicy> sinks_and_window_policy(int64_t num_kv_heads, int64_t num_sinks, int64_t num_live) {
  TORCH_CHECK(num_live >= 1, "the current token is always live");
  return std::make_unique<SinksAndWindowPolicy>(num_kv_heads, num_sinks, num_live);
}

at::Tensor hard_student_chunk(WeightSource& source, const EvictionPolicy& policy, CompactCache& cache,
                              const at::Tensor& x_nD, const RopeTables& rope, std::vector<at::Tensor>* logits) {
  const at::NoGradGuard no_grad;
  const Architecture& a = source.architecture();
  const int64_t first = cache.num_tokens(0);
  const at::Tensor position_n = at::arange(first, first + x_nD.size(0), at::kLong);
  const RopeTables chunk_rope = rope.slice(first, first + x_nD.size(0));
  at::Tensor x = x_nD;
  for (int64_t layer = 0; layer < a.num_layers; ++layer) {
    const LayerWeights weights = source.layer(layer);
    const at::Tensor normed_nD = rms_norm(x, weights.input_norm, a.rms_norm_eps);
    const AdapterReading reading = policy.read(layer, x, normed_nD, position_n);
    if (logits != nullptr) logits->push_back(reading.logit_GT);
    const AttentionInputs in = attention_inputs(a, weights, normed_nD, chunk_rope, reading.query);
    x = finish_layer(a, weights, x, cache.attend(layer, in.q_BHTd, in.k_BGTd, in.v_BGTd, reading.logit_GT));
  }
  return x;
}

at::Tensor hard_student_step(WeightSource& source, const EvictionPolicy& policy,
                             const std::vector<CompactCache*>& caches, const at::Tensor& x_BD, const RopeTables& rope) {
  const at::NoGradGuard no_grad;
  const Architecture& a = source.architecture();
  std::vector<int64_t> positions;
  for (const CompactCache* cache : caches) positions.push_back(cache->num_tokens(0));
  const at::Tensor position_B = at::tensor(positions, at::kLong);
  const at::Tensor row_B = position_B.to(rope.cos_Td.device());
  const RopeTables step_rope{rope.cos_Td.index_select(0, row_B), rope.sin_Td.index_select(0, row_B)};
  at::Tensor x = x_BD;
  for (int64_t layer = 0; layer < a.num_layers; ++layer) {
    const LayerWeights weights = source.layer(layer);
    const at::Tensor normed_BD = rms_norm(x, weights.input_norm, a.rms_norm_eps);
    const AdapterReading reading = policy.read(layer, x, normed_BD, position_B);
    const AttentionInputs in = attention_inputs(a, weights, normed_BD, step_rope, reading.query, few_rows_linear);
    const auto sequence_major = [](const at::Tensor& x_1NBd) { return x_1NBd.squeeze(0).transpose(0, 1); };
    const at::Tensor attention_BHd =
        CompactCache::attend_each(caches, layer, sequence_major(in.q_BHTd), sequence_major(in.k_BGTd),
                                  sequence_major(in.v_BGTd), reading.logit_GT);
    x = finish_layer(a, weights, x, attention_BHd.transpose(0, 1).unsqueeze(0), few_rows_linear);
  }
  return x;
}

CompactCache make_cache(const Architecture& a, const EvictionPolicy& policy, std::shared_ptr<KvPool> pool) {
  return {std::move(pool), a.num_layers, a.num_kv_heads, policy.window(), policy.decision_shift()};
}

CompactCache make_cache(const Architecture& a, const EvictionPolicy& policy, const at::TensorOptions& options) {
  return make_cache(a, policy, std::make_shared<KvPool>(a.head_dim, options, tight_layout(options.device())));
}

}  // namespace dms
