// The live keys and values of one (layer, KV head) of one sequence under hard eviction, in pages of a pool.
//
// Rows are stored as model/kv_format.h says.  Beside them stands each key's decision, the eviction logit that settled its
// fate: positive ones go once beyond the window, and when a cache must not outgrow a budget those that the evictor would
// have kept least willingly go too.
//
// Keys carry RoPE, so rows may be reused in any order: a new key takes the row of the one that leaves the window evicted,
// as in a ring.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "model/kv_pool.h"

namespace dms {

// The decision about a key before it is known: it stays.
inline constexpr float kUndecided = -std::numeric_limits<float>::infinity();

class HeadCache {
 public:
  explicit HeadCache(KvPool& pool) : pool_(&pool) {}
  HeadCache(HeadCache&& other) noexcept = default;
  HeadCache(const HeadCache&) = delete;
  HeadCache& operator=(const HeadCache&) = delete;
  ~HeadCache();

  // Live rows, in no particular order, widened to `dtype`.
  at::Tensor keys(at::ScalarType dtype) const { return from_stored(pool_->read_keys(places()), dtype); }      // [n, d]
  at::Tensor values(at::ScalarType dtype) const { return from_stored(pool_->read_values(places()), dtype); }  // [n, d]
  const std::vector<int32_t>& positions() const { return positions_; }                                        // [n]
  const std::vector<float>& decisions() const { return decisions_; }  // [n] > 0: evicted
  const std::vector<KvRow>& pages() const { return pages_; }          // the last one is filled in part
  KvRow place(int64_t row) const;
  std::vector<KvRow> places() const;  // of all live rows

  // Adds rows.
  void append(const StoredRows& keys_nd, const StoredRows& values_nd, const std::vector<int32_t>& positions_n,
              const std::vector<float>& decisions_n);
  // For the key of the newest token, whose row the caller writes: the row of the one key that can have expired with it, or
  // else a new one.  Its decision is not known yet.
  KvRow take_row(int64_t newest_position, int64_t window, int64_t shift);
  // Records the decision about one stored position.
  void decide(int64_t position, float logit);
  // Frees the rows of evicted keys that the query at `newest_position` is already too far from to see.
  void drop_expired(int64_t newest_position, int64_t window);
  // Frees the rows of all keys more than `window` tokens older than `newest_position` whose decision is above
  // `threshold`, and of at most `num_at` of those at it; returns how many of the latter.
  int64_t drop_above(float threshold, int64_t num_at, int64_t newest_position, int64_t window);

  HeadCache clone() const;  // with pages of its own

  int64_t num_live() const { return std::ssize(positions_); }
  int64_t num_pages() const { return std::ssize(pages_); }
  // Pages more that `num_new` keys need at most.
  int64_t num_pages_wanted(int64_t num_new) const { return pool_->num_pages_for(num_live() + num_new) - num_pages(); }

 private:
  void set_pages(int64_t num_pages);
  void keep_only(const std::vector<int64_t>& rows);  // ascending
  int64_t find_row(int64_t position) const;          // -1: not stored

  KvPool* pool_;
  std::vector<KvRow> pages_;
  std::vector<int32_t> positions_;  // [num_live]
  std::vector<float> decisions_;
};

}  // namespace dms
