#include "model/head_cache.h"

#include <algorithm>

namespace dms {

namespace {

template <class Value>
void reserve_exactly(std::vector<Value>& values, int64_t capacity) {
  std::vector<Value> resized;
  resized.reserve(static_cast<size_t>(capacity));
  resized.assign(values.begin(), values.end());
  values = std::move(resized);
}

}  // namespace

HeadCache::~HeadCache() {
  for (const KvRow& page : pages_) pool_->give_back(page);
}

KvRow HeadCache::place(int64_t row) const {
  const KvRow& page = pages_[static_cast<size_t>(row / pool_->page_rows())];
  return {page.slab, page.index + row % pool_->page_rows()};
}

std::vector<KvRow> HeadCache::places() const {
  std::vector<KvRow> all;
  all.reserve(positions_.size());
  for (int64_t row = 0; row < num_live(); ++row) all.push_back(place(row));
  return all;
}

void HeadCache::set_pages(int64_t num_pages) {
  if (num_pages == this->num_pages()) return;
  for (; this->num_pages() > num_pages; pages_.pop_back()) pool_->give_back(pages_.back());
  reserve_exactly(pages_, num_pages);
  while (this->num_pages() < num_pages) pages_.push_back(pool_->take());
  reserve_exactly(positions_, num_pages * pool_->page_rows());
  reserve_exactly(decisions_, num_pages * pool_->page_rows());
}

void HeadCache::append(const StoredRows& keys_nd, const StoredRows& values_nd, const std::vector<int32_t>& positions_n,
                       const std::vector<float>& decisions_n) {
  const int64_t first = num_live(), count = std::ssize(positions_n);
  set_pages(pool_->num_pages_for(first + count));
  positions_.insert(positions_.end(), positions_n.begin(), positions_n.end());
  decisions_.insert(decisions_.end(), decisions_n.begin(), decisions_n.end());
  std::vector<KvRow> places;
  for (int64_t row = first; row < first + count; ++row) places.push_back(place(row));
  pool_->write(places, keys_nd, values_nd);
}

KvRow HeadCache::take_row(int64_t newest_position, int64_t window, int64_t shift) {
  // Just out of the window; or decided about just now, when that comes later still.
  const int64_t expiring = newest_position - std::max(window + 1, shift);
  int64_t row = expiring < 0 ? -1 : find_row(expiring);
  if (row < 0 || decisions_[static_cast<size_t>(row)] <= 0.0F) {
    row = num_live();
    set_pages(pool_->num_pages_for(row + 1));
    positions_.emplace_back();
    decisions_.emplace_back();
  }
  positions_[static_cast<size_t>(row)] = static_cast<int32_t>(newest_position);
  decisions_[static_cast<size_t>(row)] = kUndecided;
  return place(row);
}

int64_t HeadCache::find_row(int64_t position) const {
  // What is new is near the end, or in a row that was there when it was last reused.
  const auto found = std::find(positions_.rbegin(), positions_.rend(), static_cast<int32_t>(position));
  return found == positions_.rend() ? -1 : std::distance(found, positions_.rend()) - 1;
}

void HeadCache::decide(int64_t position, float logit) {
  const int64_t row = find_row(position);
  TORCH_CHECK(row >= 0, "a decision about a key that is not in the cache");
  decisions_[static_cast<size_t>(row)] = logit;
}

void HeadCache::drop_expired(int64_t newest_position, int64_t window) {
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < num_live(); ++i) {
    const auto row = static_cast<size_t>(i);
    if (decisions_[row] <= 0.0F || newest_position - positions_[row] <= window) kept.push_back(i);
  }
  keep_only(kept);
}

int64_t HeadCache::drop_above(float threshold, int64_t num_at, int64_t newest_position, int64_t window) {
  std::vector<int64_t> kept;
  int64_t dropped_at = 0;
  for (int64_t i = 0; i < num_live(); ++i) {
    const auto row = static_cast<size_t>(i);
    if (newest_position - positions_[row] > window) {
      if (decisions_[row] > threshold) continue;
      if (decisions_[row] == threshold && dropped_at < num_at) {
        ++dropped_at;
        continue;
      }
    }
    kept.push_back(i);
  }
  keep_only(kept);
  return dropped_at;
}

void HeadCache::keep_only(const std::vector<int64_t>& rows) {
  const auto num_kept = std::ssize(rows);
  if (num_kept == num_live()) return;
  // Fill the holes before `num_kept` with the live rows behind it: the fewest copies.
  std::vector<int64_t> holes;
  size_t next_kept = 0;
  for (int64_t i = 0; i < num_kept; ++i) {
    if (next_kept < rows.size() && rows[next_kept] == i) {
      ++next_kept;
    } else {
      holes.push_back(i);
    }
  }
  if (!holes.empty()) {
    std::vector<KvRow> from, to;
    for (size_t i = 0; i < holes.size(); ++i) {
      const int64_t row = rows[rows.size() - holes.size() + i];
      from.push_back(place(row));
      to.push_back(place(holes[i]));
      positions_[static_cast<size_t>(holes[i])] = positions_[static_cast<size_t>(row)];
      decisions_[static_cast<size_t>(holes[i])] = decisions_[static_cast<size_t>(row)];
    }
    pool_->write(to, pool_->read_keys(from), pool_->read_values(from));
  }
  positions_.resize(static_cast<size_t>(num_kept));
  decisions_.resize(static_cast<size_t>(num_kept));
  set_pages(pool_->num_pages_for(num_kept));
}

HeadCache HeadCache::clone() const {
  HeadCache copy(*pool_);
  copy.append(pool_->read_keys(places()), pool_->read_values(places()), positions_, decisions_);
  return copy;
}

}  // namespace dms
