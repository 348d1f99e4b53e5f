#include "model/kv_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "model/pinned.h"

namespace dms {

namespace {

// Fewer entries in the page tables of the processor: slabs are read from end to end with every token.
void ask_for_huge_pages(void* memory, int64_t bytes) {
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const auto begin = (reinterpret_cast<uintptr_t>(memory) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish
}

// Calls visit(slab, source, target) for the rows in each slab: rows `source` of what is read or written, or `target` of the
// slab.
template <class Visit>
void for_each_slab(const std::vector<KvRow>& rows, int64_t further, at::Device device, const Visit& visit) {
  std::map<const KvSlab*, std::pair<std::vector<int64_t>, std::vector<int64_t>>> by_slab;
  for (size_t i = 0; i < rows.size(); ++i) {
    auto& [source, target] = by_slab[rows[i].slab];
    source.push_back(static_cast<int64_t>(i));
    target.push_back(rows[i].index + further);
  }
  for (const auto& [slab, places] : by_slab) {
    visit(*slab, to_device(places.first, device), to_device(places.second, device));
  }
}

}  // namespace

struct KvPool::Slab : KvSlab {
  at::Tensor rows_Nd, scales_N;
};

KvPoolLayout tight_layout(at::Device device) { return {kCpuPageRows, 0, 128, device.is_cpu()}; }

KvPoolLayout fast_layout(at::Device device) {
  if (device.is_cpu()) return tight_layout(device);
  // A page is one block of work for a flash-attention kernel and every slab a call of its own: pages are long, slabs few.
  return {128, int64_t{256} << 20, 4, false};
}

KvPool::KvPool(int64_t head_dim, const at::TensorOptions& options, const KvPoolLayout& layout, int64_t budget_bytes)
    : head_dim_(head_dim),
      budget_bytes_(budget_bytes),
      layout_(layout),
      options_(options),
      stored_dtype_(c10::typeMetaToScalarType(options.dtype())) {}
KvPool::~KvPool() = default;

int64_t KvPool::page_bytes() const {
  // A position and a decision a row, and where the page is.
  const auto noted =
      static_cast<int64_t>(static_cast<size_t>(page_rows()) * (sizeof(int32_t) + sizeof(float)) + sizeof(KvRow));
  return stored_bytes(page_rows()) + noted;
}

void KvPool::grow() {
  const int64_t wanted = std::max(layout_.least_slab_bytes / page_bytes(), num_pages_ / layout_.growth);
  const int64_t allowed = budget_bytes_ / page_bytes() - num_pages_;
  const int64_t pages = std::max<int64_t>(std::min(wanted, allowed), 1);

  auto slab = std::make_unique<Slab>();
  slab->rows_Nd = at::empty({2 * page_rows() * pages, head_dim_}, options_);
  if (options_.device().is_cpu())
    ask_for_huge_pages(slab->rows_Nd.data_ptr(), static_cast<int64_t>(slab->rows_Nd.nbytes()));
  slab->rows = static_cast<std::byte*>(slab->rows_Nd.data_ptr());
  if (is_quantised(stored_dtype_)) {
    slab->scales_N = at::empty({2 * page_rows() * pages}, options_.dtype(at::kFloat));
    slab->scales = slab->scales_N.data_ptr<float>();
  }
  for (int64_t page = pages - 1; page >= 0; --page) free_.push_back({slab.get(), 2 * page_rows() * page});
  num_pages_ += pages;
  slabs_.push_back(std::move(slab));
}

KvRow KvPool::take() {
  const std::lock_guard lock(mutex_);
  if (free_.empty()) grow();
  const KvRow page = free_.back();
  free_.pop_back();
  return page;
}

void KvPool::give_back(const KvRow& page) {
  const std::lock_guard lock(mutex_);
  free_.push_back(page);
}

int64_t KvPool::num_taken() const {
  const std::lock_guard lock(mutex_);
  return num_pages_ - std::ssize(free_);
}

int64_t KvPool::allocated_bytes() const {
  const std::lock_guard lock(mutex_);
  return num_pages_ * page_bytes();
}

int64_t KvPool::num_within_budget() const { return budget_bytes_ / page_bytes() - num_taken(); }

const at::Tensor& KvPool::rows_of(const KvSlab& slab) { return static_cast<const Slab&>(slab).rows_Nd; }

void KvPool::write_row(const KvRow& place, const StoredRows& keys_Nd, const StoredRows& values_Nd, int64_t from) const {
  const auto bytes = static_cast<size_t>(head_dim_) * keys_Nd.rows.element_size();
  const auto write = [&](int64_t row, const StoredRows& x) {
    std::memcpy(place.slab->rows + static_cast<size_t>(row) * bytes,
                static_cast<const std::byte*>(x.rows.const_data_ptr()) + static_cast<size_t>(from) * bytes, bytes);
    if (place.slab->scales != nullptr) place.slab->scales[row] = x.scales.const_data_ptr<float>()[from];
  };
  write(place.index, keys_Nd);
  write(place.index + page_rows(), values_Nd);
}

void KvPool::write(const std::vector<KvRow>& places, const StoredRows& keys_nd, const StoredRows& values_nd) const {
  const auto contiguous = [](const StoredRows& x) {
    return StoredRows{x.rows.contiguous(), x.scales.defined() ? x.scales.contiguous() : at::Tensor()};
  };
  const StoredRows keys = contiguous(keys_nd), values = contiguous(values_nd);
  if (layout_.host_copies) {
    for (size_t i = 0; i < places.size(); ++i) write_row(places[i], keys, values, static_cast<int64_t>(i));
    return;
  }
  for (const auto& [x, further] : {std::pair{&keys, int64_t{0}}, {&values, page_rows()}}) {
    for_each_slab(places, further, options_.device(),
                  [&, &x = *x](const KvSlab& to, const at::Tensor& source, const at::Tensor& target) {
                    const auto& slab = static_cast<const Slab&>(to);
                    bytes_of(slab.rows_Nd).index_copy_(0, target, bytes_of(x.rows).index_select(0, source));
                    if (!x.scales.defined()) return;
                    at::Tensor(slab.scales_N).index_copy_(0, target, x.scales.index_select(0, source));
                  });
  }
}

StoredRows KvPool::read(const std::vector<KvRow>& places, int64_t further) const {
  const auto count = std::ssize(places);
  StoredRows copy{at::empty({count, head_dim_}, options_), {}};
  if (is_quantised(stored_dtype_)) copy.scales = at::empty({count}, options_.dtype(at::kFloat));
  if (layout_.host_copies) {
    const auto bytes = static_cast<size_t>(head_dim_) * copy.rows.element_size();
    auto* to = static_cast<std::byte*>(copy.rows.data_ptr());
    for (size_t i = 0; i < places.size(); ++i) {
      const int64_t row = places[i].index + further;
      std::memcpy(to + i * bytes, places[i].slab->rows + static_cast<size_t>(row) * bytes, bytes);
      if (copy.scales.defined()) copy.scales.data_ptr<float>()[i] = places[i].slab->scales[row];
    }
    return copy;
  }
  for_each_slab(places, further, options_.device(),
                [&](const KvSlab& from, const at::Tensor& target, const at::Tensor& source) {
                  const auto& slab = static_cast<const Slab&>(from);
                  bytes_of(copy.rows).index_copy_(0, target, bytes_of(slab.rows_Nd).index_select(0, source));
                  if (copy.scales.defined()) {
                    copy.scales.index_copy_(0, target, slab.scales_N.index_select(0, source));
                  }
                });
  return copy;
}

}  // namespace dms
