#include "model/decode_attention.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "model/parallel_tasks.h"
#include "model/vector8.h"

namespace dms {

namespace {

// What a thread takes at a time: small enough that a few long heads keep all threads busy to the end.
constexpr int64_t kPartRows = 1024;
// Pages whose scores are worked on together; keys and values of a block stay in the first-level cache while every query
// head of the group reads them, with room for what is on its way.
// Blocks are read in an order that no processor's own prefetching follows, keys and values by turns and several rows at
// once.  Asked for a block ahead, in step with the computing, they arrive at the memory's full speed: in float32 twice
// as fast as without.
constexpr int64_t kBlockPages = 4;
constexpr int64_t kBlockRows = kBlockPages * kCpuPageRows;
static_assert(kPartRows % kBlockRows == 0);
// Query heads in registers at once.
constexpr int kTileHeads = 3;

// Softmax over some rows, not yet divided by its sum.
struct Part {
  float* out;            // [R, d]
  float *largest, *sum;  // [R]
};

// The rows in use of one page.
template <class Stored>
struct PageRows {
  const Stored *keys, *values;
  const float *key_scales, *value_scales;  // null unless quantised
  const Stored* next_keys;                 // of the page that takes this one's place in the next block
  int64_t num_rows;
};

// R query heads against one page's keys; score[r][first + n] = scale q[r] . key[n].  Prefetches the page's values.
template <int R, class Stored>
DMS_INLINE void score_page(const float* q, int64_t head_dim, const PageRows<Stored>& page, float scale, int64_t first,
                           float (*score)[kBlockRows]) {
  F32x4 products[R];
  int64_t n = 0;
  for (; n + 4 <= page.num_rows; n += 4) {
    prefetch(page.values + n * head_dim, 4 * head_dim * static_cast<int64_t>(sizeof(Stored)));
    dot_products<R, 4>(q, head_dim, page.keys + n * head_dim, head_dim, head_dim, products);
    F32x4 factor{scale, scale, scale, scale};
    if (page.key_scales != nullptr) {
      F32x4 key_scale;
      std::memcpy(&key_scale, page.key_scales + n, sizeof key_scale);
      factor *= key_scale;
    }
    for (int r = 0; r < R; ++r) {
      products[r] *= factor;
      std::memcpy(score[r] + first + n, &products[r], sizeof(F32x4));
    }
  }
  for (; n < page.num_rows; ++n) {
    dot_products<R, 1>(q, head_dim, page.keys + n * head_dim, head_dim, head_dim, products);
    const float factor = page.key_scales != nullptr ? scale * page.key_scales[n] : scale;
    for (int r = 0; r < R; ++r) score[r][first + n] = products[r][0] * factor;
  }
}

// score[n] becomes exp(score[n] - largest); what was gathered before is brought to the new largest score.
DMS_INLINE void exponentiate_block(float* score, int64_t num_rows, float& largest, float& sum, float* out,
                                   int64_t head_dim) {
  const int64_t padded = (num_rows + kLanes - 1) / kLanes * kLanes;
  float most = largest;
  for (int64_t n = 0; n < num_rows; ++n) most = std::max(most, score[n]);
  if (most > largest) {
    const float shrink = std::exp(largest - most);  // 0 at the first block
    for (int64_t j = 0; j < head_dim; ++j) out[j] *= shrink;
    sum *= shrink;
    largest = most;
  }
  for (int64_t n = num_rows; n < padded; ++n) score[n] = most;
  for (int64_t n = 0; n < padded; n += kLanes) store8(score + n, exp_of_nonpositive(load8(score + n) - most));
  for (int64_t n = num_rows; n < padded; ++n) score[n] = 0.0F;
  F32x8 lanes = {};
  for (int64_t n = 0; n < padded; n += kLanes) lanes += load8(score + n);
  const F32x4 sums = sum_lanes(lanes, lanes, lanes, lanes);
  sum += sums[0];
}

// out[r] += sum over rows of weight[r][first + n] value[n], for W vectors of channels.  Prefetches these channels of the keys
// that come next.
template <int R, int W, class Stored>
DMS_INLINE void add_values(const float (*weight)[kBlockRows], int64_t first, const PageRows<Stored>& page,
                           int64_t channel, int64_t head_dim, float* out) {
  const Stored* const values = page.values + channel;
  const Stored* const next_keys = page.next_keys + channel;
  F32x8 sum[R][W];
  for (int r = 0; r < R; ++r) {
    for (int w = 0; w < W; ++w) sum[r][w] = load8(out + r * head_dim + channel + w * kLanes);
  }
  for (int64_t n = 0; n < page.num_rows; ++n) {
    prefetch(next_keys + n * head_dim, W * kLanes * static_cast<int64_t>(sizeof(Stored)));
    F32x8 factor[R];
    for (int r = 0; r < R; ++r) factor[r] = broadcast(weight[r][first + n]);
    for (int w = 0; w < W; ++w) {
      const F32x8 value = load8(values + n * head_dim + w * kLanes);
      for (int r = 0; r < R; ++r) sum[r][w] += factor[r] * value;
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int w = 0; w < W; ++w) store8(out + r * head_dim + channel + w * kLanes, sum[r][w]);
  }
}

template <int R, class Stored>
DMS_INLINE void attend_block(const float* q, int64_t head_dim, const PageRows<Stored>* pages, int64_t num_pages,
                             float scale, const Part& part) {
  alignas(32) float score[R][kBlockRows];
  int64_t num_rows = 0;
  for (int64_t p = 0; p < num_pages; ++p) {
    score_page<R>(q, head_dim, pages[p], scale, p * kCpuPageRows, score);
    num_rows += pages[p].num_rows;
  }
  for (int r = 0; r < R; ++r) {
    exponentiate_block(score[r], num_rows, part.largest[r], part.sum[r], part.out + r * head_dim, head_dim);
  }
  for (int64_t p = 0; p < num_pages; ++p) {
    const PageRows<Stored>& page = pages[p];
    const int64_t first = p * kCpuPageRows;
    if (page.value_scales != nullptr) {
      for (int r = 0; r < R; ++r) {
        for (int64_t n = 0; n < page.num_rows; ++n) score[r][first + n] *= page.value_scales[n];
      }
    }
    constexpr int kWide = 4;
    int64_t j = 0;
    for (; j + kWide * kLanes <= head_dim; j += kWide * kLanes) {
      add_values<R, kWide>(score, first, page, j, head_dim, part.out);
    }
    for (; j < head_dim; j += kLanes) add_values<R, 1>(score, first, page, j, head_dim, part.out);
  }
}

template <class Stored>
DMS_INLINE PageRows<Stored> rows_in(const KvRow& page, int64_t head_dim, int64_t num_rows) {
  const auto* keys = reinterpret_cast<const Stored*>(page.slab->rows) + page.index * head_dim;
  const float* scales = page.slab->scales == nullptr ? nullptr : page.slab->scales + page.index;
  return {keys, keys + kCpuPageRows * head_dim,  scales, scales == nullptr ? nullptr : scales + kCpuPageRows,
          keys, std::min(num_rows, kCpuPageRows)};
}

template <class Stored>
DMS_INLINE void attend(const DecodeHead& head, int64_t group_size, int64_t head_dim, float scale, int64_t first,
                       int64_t last, const Part& part) {
  std::fill(part.out, part.out + group_size * head_dim, 0.0F);
  std::fill(part.sum, part.sum + group_size, 0.0F);
  std::fill(part.largest, part.largest + group_size, -std::numeric_limits<float>::infinity());
  const int64_t num_tiles = (group_size + kTileHeads - 1) / kTileHeads;
  for (int64_t n = first; n < last; n += kBlockRows) {
    PageRows<Stored> pages[kBlockPages];
    int64_t num_pages = 0;
    for (int64_t row = n; row < std::min(n + kBlockRows, last); row += kCpuPageRows) {
      PageRows<Stored>& page = pages[num_pages++];
      const KvRow* const at = head.pages + row / kCpuPageRows;
      page = rows_in<Stored>(*at, head_dim, last - row);
      // Where there is none what is here already stands in for it.
      if (row + kBlockRows < last) page.next_keys = rows_in<Stored>(at[kBlockPages], head_dim, 1).keys;
    }
    for (int64_t tile = 0; tile < num_tiles; ++tile) {  // of nearly equal sizes
      const int64_t r = tile * group_size / num_tiles, count = (tile + 1) * group_size / num_tiles - r;
      const float* q = head.q + r * head_dim;
      const Part tile_part{part.out + r * head_dim, part.largest + r, part.sum + r};
      if (count == 3) {
        attend_block<3>(q, head_dim, pages, num_pages, scale, tile_part);
      } else if (count == 2) {
        attend_block<2>(q, head_dim, pages, num_pages, scale, tile_part);
      } else {
        attend_block<1>(q, head_dim, pages, num_pages, scale, tile_part);
      }
    }
  }
}

DMS_VECTOR_CLONES void attend_float32(const DecodeHead& head, int64_t group_size, int64_t head_dim, float scale,
                                      int64_t first, int64_t last, const Part& part) {
  attend<float>(head, group_size, head_dim, scale, first, last, part);
}
DMS_VECTOR_CLONES void attend_bfloat16(const DecodeHead& head, int64_t group_size, int64_t head_dim, float scale,
                                       int64_t first, int64_t last, const Part& part) {
  attend<StoredBFloat16>(head, group_size, head_dim, scale, first, last, part);
}
DMS_VECTOR_CLONES void attend_int8(const DecodeHead& head, int64_t group_size, int64_t head_dim, float scale,
                                   int64_t first, int64_t last, const Part& part) {
  attend<StoredInt8>(head, group_size, head_dim, scale, first, last, part);
}
DMS_VECTOR_CLONES void attend_float8(const DecodeHead& head, int64_t group_size, int64_t head_dim, float scale,
                                     int64_t first, int64_t last, const Part& part) {
  attend<StoredFloat8E4M3>(head, group_size, head_dim, scale, first, last, part);
}

using AttendFunction = void (*)(const DecodeHead&, int64_t, int64_t, float, int64_t, int64_t, const Part&);

AttendFunction attend_function(c10::ScalarType stored) {
  switch (stored) {
    case c10::ScalarType::Float:
      return attend_float32;
    case c10::ScalarType::BFloat16:
      return attend_bfloat16;
    case c10::ScalarType::Char:
      return attend_int8;
    case c10::ScalarType::Float8_e4m3fn:
      return attend_float8;
    default:
      return nullptr;
  }
}

struct Task {
  size_t head;
  int64_t first, last;  // rows
};

}  // namespace

bool has_decode_attention(c10::ScalarType stored) { return attend_function(stored) != nullptr; }

void decode_attention(const std::vector<DecodeHead>& heads, int64_t group_size, int64_t head_dim,
                      c10::ScalarType stored, float scale) {
  const AttendFunction attend_part = attend_function(stored);
  TORCH_CHECK(attend_part != nullptr && head_dim % kLanes == 0, "decode_attention's contract");
  std::vector<Task> tasks;
  std::vector<size_t> first_task;
  for (size_t h = 0; h < heads.size(); ++h) {
    TORCH_CHECK(heads[h].num_rows >= 1, "a query sees its own key");
    first_task.push_back(tasks.size());
    for (int64_t n = 0; n < heads[h].num_rows; n += kPartRows) {
      tasks.push_back({h, n, std::min(n + kPartRows, heads[h].num_rows)});
    }
  }
  first_task.push_back(tasks.size());

  const auto part_floats = static_cast<size_t>(group_size * (head_dim + 2));
  std::vector<float> scratch(tasks.size() * part_floats);
  const auto part = [&](size_t task) {
    float* out = scratch.data() + task * part_floats;
    return Part{out, out + group_size * head_dim, out + group_size * (head_dim + 1)};
  };
  run_tasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const Task& task = tasks[static_cast<size_t>(i)];
    attend_part(heads[task.head], group_size, head_dim, scale, task.first, task.last, part(static_cast<size_t>(i)));
  });

  for (size_t h = 0; h < heads.size(); ++h) {
    for (int64_t r = 0; r < group_size; ++r) {
      float largest = -std::numeric_limits<float>::infinity();
      for (size_t task = first_task[h]; task < first_task[h + 1]; ++task) {
        largest = std::max(largest, part(task).largest[r]);
      }
      float sum = 0.0F;
      float* out = heads[h].out + r * head_dim;
      std::fill(out, out + head_dim, 0.0F);
      for (size_t task = first_task[h]; task < first_task[h + 1]; ++task) {
        const float weight = std::exp(part(task).largest[r] - largest);
        sum += weight * part(task).sum[r];
        for (int64_t j = 0; j < head_dim; ++j) out[j] += weight * part(task).out[r * head_dim + j];
      }
      for (int64_t j = 0; j < head_dim; ++j) out[j] /= sum;
    }
  }
}

}  // namespace dms
