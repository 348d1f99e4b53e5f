// The compact KV cache of one sequence under hard eviction: per (layer, KV head) only live keys and values are stored,
// ragged over heads, and the bytes it reports are the bytes it has allocated.
//
// A key stays while it is inside the window (q - k <= window), while its decision is not yet known (the newest `shift`
// tokens), or when its decision was to keep it.  Keys carry RoPE, so slots may be reused in any order.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace dms {

// The live rows of one (layer, KV head).
class HeadCache {
 public:
  HeadCache(int64_t head_dim, const at::TensorOptions& options);

  // Live rows, in no particular order.
  at::Tensor keys() const { return keys_cd_.slice(0, 0, num_live_); }      // [n, d]
  at::Tensor values() const { return values_cd_.slice(0, 0, num_live_); }  // [n, d]
  const std::vector<int32_t>& positions() const { return positions_; }     // [n]
  const std::vector<uint8_t>& evicted() const { return evicted_; }         // [n] 1 = goes once beyond the window

  // Appends rows at positions first_position..., their decisions unknown (kept so far).
  void append(const at::Tensor& keys_nd, const at::Tensor& values_nd, int64_t first_position);
  // Records the decision about one stored position.
  void decide(int64_t position, bool evict);
  // Frees the slots of evicted keys that the query at `newest_position` is already too far from to see.
  void drop_expired(int64_t newest_position, int64_t window);
  // The same for the one key that can have expired with the newest token.
  void drop_expired_with(int64_t newest_position, int64_t window, int64_t shift);

  HeadCache clone() const;  // with storage of its own

  int64_t num_live() const { return num_live_; }
  int64_t allocated_bytes() const;
  int64_t live_bytes() const;

 private:
  void set_capacity(int64_t rows);
  int64_t find_row(int64_t position) const;  // -1: not stored
  void remove_row(int64_t row);
  void give_back_unused();

  at::Tensor keys_cd_, values_cd_;  // [capacity, d]
  std::vector<int32_t> positions_;
  std::vector<uint8_t> evicted_;
  int64_t num_live_ = 0;
};

class CompactCache {
 public:
  // `shift` tokens after a key's arrival its decision is known.
  CompactCache(int64_t num_layers, int64_t num_kv_heads, int64_t head_dim, int64_t window, int64_t shift,
               const at::TensorOptions& options);

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

  CompactCache clone() const;  // with storage of its own

  const HeadCache& head(int64_t layer, int64_t kv_head) const;
  int64_t allocated_bytes() const;
  int64_t live_bytes() const;
  int64_t num_live_keys() const;                            // summed over layers and heads
  int64_t num_keys_read() const { return num_keys_read_; }  // summed over queries so far, layers and KV heads

 private:
  HeadCache& head(int64_t layer, int64_t kv_head);

  const int64_t num_kv_heads_, window_, shift_;
  const at::ScalarType stored_dtype_;
  std::vector<HeadCache> heads_;     // [L * G]
  std::vector<int64_t> num_tokens_;  // [L]
  int64_t num_keys_read_ = 0;
};

}  // namespace dms
