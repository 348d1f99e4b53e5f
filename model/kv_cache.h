// The compact KV cache of one sequence under hard eviction: per (layer, KV head) only live keys and values are stored,
// ragged over heads, and the bytes it reports are the bytes it has allocated.
//
// Rows are stored as model/kv_format.h says.  Beside them stands each key's decision, the eviction logit that settled its
// fate: positive ones go once beyond the window, and when a cache must not outgrow a budget those that the evictor would
// have kept least willingly go too (make_room).
//
// A key stays while it is inside the window (q - k <= window), while its decision is not yet known (the newest `shift`
// tokens), or when its decision was to keep it.  Keys carry RoPE, so slots may be reused in any order.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "model/decode_attention.h"
#include "model/kv_format.h"

namespace dms {

// The live rows of one (layer, KV head).
class HeadCache {
 public:
  // `options`: where rows are stored, and as what.
  HeadCache(int64_t head_dim, const at::TensorOptions& options);

  // Live rows, in no particular order, widened to `dtype`.
  at::Tensor keys(at::ScalarType dtype) const { return from_stored(live(keys_), dtype); }      // [n, d]
  at::Tensor values(at::ScalarType dtype) const { return from_stored(live(values_), dtype); }  // [n, d]
  const std::vector<int32_t>& positions() const { return positions_; }                         // [n]
  const std::vector<float>& decisions() const { return decisions_; }                           // [n] > 0: evicted

  // Appends rows at positions first_position..., their decisions unknown (kept so far).
  void append(const StoredRows& keys_nd, const StoredRows& values_nd, int64_t first_position);
  // The same for one row on the CPU: row `index` of rows [N, d].
  void append_row(const StoredRows& keys_Nd, const StoredRows& values_Nd, int64_t index, int64_t position);
  // Records the decision about one stored position.
  void decide(int64_t position, float logit);
  // Frees the slots of evicted keys that the query at `newest_position` is already too far from to see.
  void drop_expired(int64_t newest_position, int64_t window);
  // The same for the one key that can have expired with the newest token.
  void drop_expired_with(int64_t newest_position, int64_t window, int64_t shift);
  // Frees the slots of all keys more than `window` tokens older than `newest_position` whose decision is above
  // `threshold`, and of at most `num_at` of those at it; returns how many of the latter.  Then gives back all capacity
  // beyond what `num_new` more rows need.
  int64_t drop_above(float threshold, int64_t num_at, int64_t newest_position, int64_t window, int64_t num_new);

  HeadCache clone() const;  // with storage of its own

  int64_t num_live() const { return std::ssize(positions_); }
  int64_t allocated_bytes() const { return capacity() * row_bytes(); }
  int64_t bytes_after_append(int64_t num_new) const;
  int64_t row_bytes() const;  // of a key and its value, their scales, its position and decision
  int64_t live_bytes() const;

  // For decode_attention(): where the live rows are.
  void point_to_rows(DecodeHead& head) const;

 private:
  struct Storage {
    at::Tensor rows_cd, scales_c;  // [capacity, d], [capacity]
  };
  int64_t capacity() const { return keys_.rows_cd.size(0); }
  StoredRows live(const Storage& storage) const;
  void set_capacity(int64_t rows);
  void shrink_to(int64_t rows);  // never grows
  void copy_rows(const std::vector<int64_t>& from, const std::vector<int64_t>& to);
  void keep_only(const std::vector<int64_t>& rows);  // ascending
  int64_t find_row(int64_t position) const;          // -1: not stored
  void remove_row(int64_t row);

  Storage keys_, values_;
  std::vector<int32_t> positions_;  // [num_live]
  std::vector<float> decisions_;
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

  // Evicts until `num_new` more tokens fit into `max_bytes`: of all keys beyond the window, those with the highest
  // decisions, over all layers and heads, whatever their sign.  False when the window alone is too large; then everything
  // beyond it has gone.
  bool make_room(int64_t num_new, int64_t max_bytes);

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
