// Where rows of keys and values lie: in pages, each a few rows of keys followed by as many of values.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dms {

// Memory that pages are cut from: rows of keys and values by turns, a page of each.  Addresses are the device's.
struct KvSlab {
  std::byte* rows = nullptr;  // [2 * page_rows * pages, d], as stored
  float* scales = nullptr;    // [2 * page_rows * pages]: of each row; null unless quantised (model/kv_format.h)
};

// A key's row in a slab; its value is `page_rows` rows further.  A page is named by its first key's.
struct KvRow {
  const KvSlab* slab = nullptr;
  int64_t index = 0;
};

// Keys in a page wherever memory counts, which is always so on the CPU: few, so that a head wastes little with its last page.
inline constexpr int64_t kCpuPageRows = 8;

}  // namespace dms
