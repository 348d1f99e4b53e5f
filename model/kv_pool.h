// The memory of key-value caches: pages that all heads, layers and sequences take from one pool and give back to it.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "model/kv_format.h"
#include "model/kv_page.h"

namespace dms {

// What suits a device's memory.
struct KvPoolLayout {
  int64_t page_rows;         // keys in a page
  int64_t least_slab_bytes;  // of each piece by which the pool grows
  int64_t growth;            // or one of so many parts of what there is, when that is more
  bool host_copies;          // rows are copied by the host, else by the device's index operators
};
// For decoding many sequences.
KvPoolLayout fast_layout(at::Device device);
// For a cache whose memory is to be measured: as little as can be that nobody uses, on any device.
KvPoolLayout tight_layout(at::Device device);

class KvPool {
 public:
  // `options`: where rows are stored, and as what.  Up to `budget_bytes` the pool never holds more than that; beyond, it
  // grows by what is asked for and no more.
  KvPool(int64_t head_dim, const at::TensorOptions& options, const KvPoolLayout& layout,
         int64_t budget_bytes = std::numeric_limits<int64_t>::max());
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;
  ~KvPool();

  // Any thread may take a page and give it back.
  KvRow take();
  void give_back(const KvRow& page);

  int64_t page_rows() const { return layout_.page_rows; }
  // Of a page's keys and values, their scales, and what a cache notes about each row.
  int64_t page_bytes() const;
  int64_t num_pages_for(int64_t rows) const { return (rows + page_rows() - 1) / page_rows(); }
  int64_t num_taken() const;
  // All pages, those that nobody has among them.
  int64_t allocated_bytes() const;
  // Pages that can be taken before more than the budget is allocated.
  int64_t num_within_budget() const;

  at::ScalarType stored_dtype() const { return stored_dtype_; }
  // Of keys and values alone.
  int64_t stored_bytes(int64_t rows) const { return rows * 2 * stored_row_bytes(head_dim_, stored_dtype_); }

  // Keys and values, row i [d] of each, to and from `places[i]`.
  void write(const std::vector<KvRow>& places, const StoredRows& keys_nd, const StoredRows& values_nd) const;
  StoredRows read_keys(const std::vector<KvRow>& places) const { return read(places, 0); }
  StoredRows read_values(const std::vector<KvRow>& places) const { return read(places, page_rows()); }
  // Where the host copies: row `from` of each to `place`.
  void write_row(const KvRow& place, const StoredRows& keys_Nd, const StoredRows& values_Nd, int64_t from) const;

  // A slab's rows as they lie, [2 * page_rows * pages, d].
  static const at::Tensor& rows_of(const KvSlab& slab);

 private:
  struct Slab;
  void grow();
  StoredRows read(const std::vector<KvRow>& places, int64_t further) const;

  const int64_t head_dim_, budget_bytes_;
  const KvPoolLayout layout_;
  const at::TensorOptions options_;
  const at::ScalarType stored_dtype_;
  mutable std::mutex mutex_;  // of all that follows
  std::vector<std::unique_ptr<Slab>> slabs_;
  int64_t num_pages_ = 0;
  std::vector<KvRow> free_;  // the last one given back is the next one taken
};

}  // namespace dms
