// The compact KV cache of one sequence under hard eviction: per (layer, KV head) only live keys and values are stored
// (model/head_cache.h), ragged over heads, and the bytes it reports are the bytes of the pages it holds.
//
// A key stays while it is inside the window (q - k <= window), while its decision is not yet known (the newest `shift`
// tokens), or when its decision was to keep it.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "model/head_cache.h"
#include "model/kv_pool.h"

namespace dms {

class CompactCache {
 public:
  // `shift` tokens after a key's arrival its decision is known.
  CompactCache(std::shared_ptr<KvPool> pool, int64_t num_layers, int64_t num_kv_heads, int64_t window, int64_t shift);

  int64_t num_tokens(int64_t layer) const { return num_tokens_[static_cast<size_t>(layer)]; }

  // Attention of n new tokens over the live keys and themselves, then the cache moves on: the new keys are stored, the
  // decisions that `logit_Gn` settles are recorded and expired keys freed.
  // q_BHnd [1, H, n, d]; k_BGnd, v_BGnd [1, G, n, d]; logit_Gn: the new tokens' eviction logits (> 0 evicts).
  // Returns [1, H, n, d].  Rows are computed with in q's dtype, whatever they are stored in.
  at::Tensor attend(int64_t layer, const at::Tensor& q_BHnd, const at::Tensor& k_BGnd, const at::Tensor& v_BGnd,
                    const at::Tensor& logit_Gn);

  // The same for one new token of each of several sequences: q_BHd [B, H, d], k_BGd, v_BGd [B, G, d], logit_GB [G, B].
  // Returns [B, H, d].
  static at::Tensor attend_each(const std::vector<CompactCache*>& caches, int64_t layer, const at::Tensor& q_BHd,
                                const at::Tensor& k_BGd, const at::Tensor& v_BGd, const at::Tensor& logit_GB);

  // Evicts until `num_new` more tokens fit into `max_bytes`: of all keys beyond the window, those with the highest
  // decisions, over all layers and heads, whatever their sign.  False when the window alone is too large; then everything
  // beyond it has gone.
  bool make_room(int64_t num_new, int64_t max_bytes);

  // Pages more that `num_new` tokens need at most.
  int64_t num_pages_wanted(int64_t num_new) const;

  CompactCache clone() const;  // with pages of its own, from the same pool

  const HeadCache& head(int64_t layer, int64_t kv_head) const;
  const KvPool& pool() const { return *pool_; }
  int64_t allocated_bytes() const;  // of the pages it holds
  int64_t live_bytes() const;
  int64_t num_live_keys() const;                            // summed over layers and heads
  int64_t num_keys_read() const { return num_keys_read_; }  // summed over queries so far, layers and KV heads

 private:
  HeadCache& head(int64_t layer, int64_t kv_head);
  // attend() in one KV head.  q_1Rnd [1, R, n, d]; k_nd, v_nd [n, d]; decision_n: the new tokens' logits, on the CPU.
  at::Tensor attend_chunk(int64_t layer, int64_t kv_head, const at::Tensor& q_1Rnd, const at::Tensor& k_nd,
                          const at::Tensor& v_nd, const float* decision_n);
  // What a new token changes in one KV head.  Returns the row that its key takes, into which the caller writes it.
  KvRow advance(int64_t layer, int64_t kv_head, float decision);

  std::shared_ptr<KvPool> pool_;  // outlives the heads
  int64_t num_kv_heads_, window_, shift_;
  std::vector<HeadCache> heads_;     // [L * G]
  std::vector<int64_t> num_tokens_;  // [L]
  int64_t num_keys_read_ = 0;
};

}  // namespace dms
