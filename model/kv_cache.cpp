#include "model/kv_cache.h"

#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "model/parallel_tasks.h"

namespace dms {

namespace {

// Storage comes in pages of this many rows.
constexpr int64_t kPageRows = 4;

int64_t whole_pages(int64_t rows) { return (rows + kPageRows - 1) / kPageRows * kPageRows; }

// Row by row it grows by a twentieth, so that growing costs each row a constant.
int64_t grown_capacity(int64_t rows) { return whole_pages(rows + rows / 20); }

bool decodes_on_cpu(const at::Tensor& q, at::ScalarType stored) {
  return q.is_cpu() && q.scalar_type() == at::kFloat && has_decode_attention(stored) && q.size(-1) % 8 == 0;
}

// The decision about a key before it is known: it stays.
constexpr float kUndecided = -std::numeric_limits<float>::infinity();

}  // namespace

HeadCache::HeadCache(int64_t head_dim, const at::TensorOptions& options) {
  const bool quantised = is_quantised(c10::typeMetaToScalarType(options.dtype()));
  for (Storage* storage : {&keys_, &values_}) {
    storage->rows_cd = at::empty({0, head_dim}, options);
    if (quantised) storage->scales_c = at::empty({0}, options.dtype(at::kFloat));
  }
}

StoredRows HeadCache::live(const Storage& storage) const {
  return {storage.rows_cd.slice(0, 0, num_live()),
          storage.scales_c.defined() ? storage.scales_c.slice(0, 0, num_live()) : at::Tensor()};
}

void HeadCache::set_capacity(int64_t rows) {
  const int64_t kept = num_live();
  TORCH_CHECK(rows >= kept, "no room for what is live");
  for (Storage* storage : {&keys_, &values_}) {
    for (at::Tensor* part : {&storage->rows_cd, &storage->scales_c}) {
      if (!part->defined()) continue;
      std::vector<int64_t> shape = part->sizes().vec();
      shape[0] = rows;
      const at::Tensor resized = at::empty(shape, part->options());
      resized.slice(0, 0, kept).copy_(part->slice(0, 0, kept));
      *part = resized;
    }
  }
  const auto exactly = [rows](auto& values) {
    auto resized = std::remove_reference_t<decltype(values)>();
    resized.reserve(static_cast<size_t>(rows));
    resized.assign(values.begin(), values.end());
    values = std::move(resized);
  };
  exactly(positions_);
  exactly(decisions_);
}

void HeadCache::append(const StoredRows& keys_nd, const StoredRows& values_nd, int64_t first_position) {
  const int64_t count = keys_nd.rows.size(0), first = num_live();
  if (first + count > capacity()) set_capacity(whole_pages(first + count));
  const auto write = [&](const Storage& to, const StoredRows& from) {
    to.rows_cd.slice(0, first, first + count).copy_(from.rows);
    if (from.scales.defined()) to.scales_c.slice(0, first, first + count).copy_(from.scales);
  };
  write(keys_, keys_nd);
  write(values_, values_nd);
  for (int64_t i = 0; i < count; ++i) positions_.push_back(static_cast<int32_t>(first_position + i));
  decisions_.resize(positions_.size(), kUndecided);
}

void HeadCache::append_row(const StoredRows& keys_Nd, const StoredRows& values_Nd, int64_t index, int64_t position) {
  const int64_t row = num_live();
  if (row == capacity()) set_capacity(grown_capacity(row + 1));
  const auto write = [&](const Storage& to, const StoredRows& from) {
    const auto bytes = static_cast<size_t>(to.rows_cd.size(1) * to.rows_cd.element_size());
    std::memcpy(static_cast<std::byte*>(to.rows_cd.data_ptr()) + static_cast<size_t>(row) * bytes,
                static_cast<const std::byte*>(from.rows.const_data_ptr()) + static_cast<size_t>(index) * bytes, bytes);
    if (from.scales.defined()) to.scales_c.data_ptr<float>()[row] = from.scales.const_data_ptr<float>()[index];
  };
  write(keys_, keys_Nd);
  write(values_, values_Nd);
  positions_.push_back(static_cast<int32_t>(position));
  decisions_.push_back(kUndecided);
}

int64_t HeadCache::find_row(int64_t position) const {
  // New rows are appended and freed slots filled from the end, so a recent position is near the end.
  const auto found = std::find(positions_.rbegin(), positions_.rend(), static_cast<int32_t>(position));
  return found == positions_.rend() ? -1 : std::distance(found, positions_.rend()) - 1;
}

void HeadCache::decide(int64_t position, float logit) {
  const int64_t row = find_row(position);
  TORCH_CHECK(row >= 0, "a decision about a key that is not in the cache");
  decisions_[static_cast<size_t>(row)] = logit;
}

void HeadCache::copy_rows(const std::vector<int64_t>& from, const std::vector<int64_t>& to) {
  for (const Storage* storage : {&keys_, &values_}) {
    for (const at::Tensor* part : {&storage->rows_cd, &storage->scales_c}) {
      if (!part->defined() || part->size(0) == 0) continue;
      const auto row_bytes = static_cast<size_t>(part->nbytes()) / static_cast<size_t>(part->size(0));
      if (part->is_cpu()) {
        auto* bytes = static_cast<std::byte*>(part->data_ptr());
        for (size_t i = 0; i < from.size(); ++i) {
          std::memcpy(bytes + static_cast<size_t>(to[i]) * row_bytes, bytes + static_cast<size_t>(from[i]) * row_bytes,
                      row_bytes);
        }
      } else {
        // As bytes: not every format has index operators.
        const at::Tensor bytes = part->view({part->size(0), -1}).view(at::kByte);
        const auto index = [&](const std::vector<int64_t>& rows) {
          return at::tensor(rows, at::kLong).to(part->device());
        };
        bytes.index_copy_(0, index(to), bytes.index_select(0, index(from)));
      }
    }
  }
  for (size_t i = 0; i < from.size(); ++i) {
    positions_[static_cast<size_t>(to[i])] = positions_[static_cast<size_t>(from[i])];
    decisions_[static_cast<size_t>(to[i])] = decisions_[static_cast<size_t>(from[i])];
  }
}

void HeadCache::remove_row(int64_t row) {
  const int64_t last = num_live() - 1;
  if (row != last) copy_rows({last}, {row});
  positions_.pop_back();
  decisions_.pop_back();
}

void HeadCache::shrink_to(int64_t rows) {
  if (capacity() > rows) set_capacity(rows);
}

void HeadCache::drop_expired_with(int64_t newest_position, int64_t window, int64_t shift) {
  // Just out of the window; or decided about just now, when that comes later still.
  const int64_t position = newest_position - std::max(window + 1, shift);
  if (position < 0) return;
  const int64_t row = find_row(position);
  if (row >= 0 && decisions_[static_cast<size_t>(row)] > 0.0F) remove_row(row);
  // Not at once: the row that this token freed is the one that the next token takes.
  if (capacity() > grown_capacity(num_live()) + num_live() / 16) set_capacity(grown_capacity(num_live()));
}

void HeadCache::drop_expired(int64_t newest_position, int64_t window) {
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < num_live(); ++i) {
    const auto row = static_cast<size_t>(i);
    if (decisions_[row] <= 0.0F || newest_position - positions_[row] <= window) kept.push_back(i);
  }
  keep_only(kept);
  shrink_to(whole_pages(num_live()));
}

int64_t HeadCache::drop_above(float threshold, int64_t num_at, int64_t newest_position, int64_t window,
                              int64_t num_new) {
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
  shrink_to(whole_pages(num_live() + num_new));
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
  if (!holes.empty()) copy_rows({rows.end() - std::ssize(holes), rows.end()}, holes);
  positions_.resize(static_cast<size_t>(num_kept));
  decisions_.resize(static_cast<size_t>(num_kept));
}

HeadCache HeadCache::clone() const {
  HeadCache copy = *this;
  copy.set_capacity(capacity());
  return copy;
}

int64_t HeadCache::row_bytes() const {
  return 2 * stored_row_bytes(keys_.rows_cd.size(1), keys_.rows_cd.scalar_type()) +
         static_cast<int64_t>(sizeof(int32_t) + sizeof(float));
}

int64_t HeadCache::bytes_after_append(int64_t num_new) const {
  const int64_t rows = num_live() + num_new;
  return (rows > capacity() ? grown_capacity(rows) : capacity()) * row_bytes();
}

int64_t HeadCache::live_bytes() const {
  return num_live() * 2 * stored_row_bytes(keys_.rows_cd.size(1), keys_.rows_cd.scalar_type());
}

void HeadCache::point_to_rows(DecodeHead& head) const {
  head.keys = keys_.rows_cd.const_data_ptr();
  head.values = values_.rows_cd.const_data_ptr();
  if (keys_.scales_c.defined()) {
    head.key_scales = keys_.scales_c.const_data_ptr<float>();
    head.value_scales = values_.scales_c.const_data_ptr<float>();
  }
  head.num_rows = num_live();
}

CompactCache::CompactCache(int64_t num_layers, int64_t num_kv_heads, int64_t head_dim, int64_t window, int64_t shift,
                           const at::TensorOptions& options)
    : num_kv_heads_(num_kv_heads),
      window_(window),
      shift_(shift),
      stored_dtype_(c10::typeMetaToScalarType(options.dtype())),
      num_tokens_(static_cast<size_t>(num_layers), 0) {
  for (int64_t i = 0; i < num_layers * num_kv_heads; ++i) heads_.emplace_back(head_dim, options);
}

CompactCache CompactCache::clone() const {
  CompactCache copy = *this;
  for (HeadCache& head : copy.heads_) head = head.clone();
  return copy;
}

HeadCache& CompactCache::head(int64_t layer, int64_t kv_head) {
  return heads_[static_cast<size_t>(layer * num_kv_heads_ + kv_head)];
}
const HeadCache& CompactCache::head(int64_t layer, int64_t kv_head) const {
  return heads_[static_cast<size_t>(layer * num_kv_heads_ + kv_head)];
}

at::Tensor CompactCache::attend(int64_t layer, const at::Tensor& q_BHnd, const at::Tensor& k_BGnd,
                                const at::Tensor& v_BGnd, const at::Tensor& logit_Gn) {
  const at::NoGradGuard no_grad;
  const int64_t count = q_BHnd.size(2), head_dim = q_BHnd.size(3);
  if (count == 1 && decodes_on_cpu(q_BHnd, stored_dtype_)) {
    return attend_each({this}, layer, q_BHnd.select(2, 0), k_BGnd.select(2, 0), v_BGnd.select(2, 0), logit_Gn)
        .unsqueeze(2);
  }
  const int64_t group = q_BHnd.size(1) / num_kv_heads_;
  const int64_t first = num_tokens_[static_cast<size_t>(layer)];
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  const at::Tensor decision_Gn = logit_Gn.to(at::kCPU, at::kFloat).contiguous();
  const float* decision = decision_Gn.data_ptr<float>();

  std::vector<at::Tensor> outs;
  for (int64_t g = 0; g < num_kv_heads_; ++g) {
    HeadCache& cache = head(layer, g);
    cache.append(to_stored(k_BGnd.select(1, g).squeeze(0), stored_dtype_),
                 to_stored(v_BGnd.select(1, g).squeeze(0), stored_dtype_), first);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t key = first + i - shift_;  // the key that new token i decides about
      if (key >= 0) cache.decide(key, decision[g * count + i]);
    }

    // Additive mask over stored rows: the future, and evicted keys beyond the window.  Old survivors need none.
    const int64_t rows = cache.num_live();
    at::Tensor mask_nr = at::zeros({count, rows}, at::kFloat);
    float* mask = mask_nr.data_ptr<float>();
    num_keys_read_ += count * rows;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = cache.positions()[static_cast<size_t>(r)];
      const bool evicted = cache.decisions()[static_cast<size_t>(r)] > 0.0F;
      if (position <= first && !evicted) continue;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t distance = first + i - position;
        if (distance >= 0 && (distance <= window_ || !evicted)) continue;
        mask[i * rows + r] = -std::numeric_limits<float>::infinity();
        --num_keys_read_;
      }
    }
    const at::Tensor q_1Rnd = q_BHnd.slice(1, g * group, (g + 1) * group);
    outs.push_back(at::scaled_dot_product_attention(
        q_1Rnd, cache.keys(q_BHnd.scalar_type()).unsqueeze(0).unsqueeze(0).expand({1, group, rows, head_dim}),
        cache.values(q_BHnd.scalar_type()).unsqueeze(0).unsqueeze(0).expand({1, group, rows, head_dim}),
        mask_nr.to(q_BHnd.options()).unsqueeze(0).unsqueeze(0), 0.0, false, scale));
    cache.drop_expired(first + count - 1, window_);
  }
  num_tokens_[static_cast<size_t>(layer)] = first + count;
  return at::cat(outs, 1);
}

at::Tensor CompactCache::attend_each(const std::vector<CompactCache*>& caches, int64_t layer, const at::Tensor& q_BHd,
                                     const at::Tensor& k_BGd, const at::Tensor& v_BGd, const at::Tensor& logit_GB) {
  const at::NoGradGuard no_grad;
  const int64_t batch = q_BHd.size(0), num_kv_heads = k_BGd.size(1), head_dim = q_BHd.size(2);
  if (!decodes_on_cpu(q_BHd, caches.front()->stored_dtype_)) {
    std::vector<at::Tensor> outs;
    for (int64_t b = 0; b < batch; ++b) {
      const auto token = [&](const at::Tensor& x) { return x.slice(0, b, b + 1).unsqueeze(2); };
      outs.push_back(caches[static_cast<size_t>(b)]
                         ->attend(layer, token(q_BHd), token(k_BGd), token(v_BGd), logit_GB.slice(1, b, b + 1))
                         .squeeze(2));
    }
    return at::cat(outs);
  }
  const int64_t group = q_BHd.size(1) / num_kv_heads;
  const at::ScalarType stored = caches.front()->stored_dtype_;
  const at::Tensor q = q_BHd.contiguous();
  const at::Tensor out_BHd = at::empty_like(q);
  const at::Tensor decision_GB = logit_GB.to(at::kFloat).contiguous();
  const float* decision = decision_GB.data_ptr<float>();
  // Rows b * G + g.
  const auto rows_of = [&](const at::Tensor& x_BGd) { return to_stored(x_BGd.contiguous(), stored); };
  const StoredRows new_keys = rows_of(k_BGd), new_values = rows_of(v_BGd);
  std::vector<DecodeHead> heads(static_cast<size_t>(batch * num_kv_heads));
  run_tasks(batch, [&](int64_t b) {
    CompactCache& sequence = *caches[static_cast<size_t>(b)];
    const int64_t position = sequence.num_tokens(layer), decided = position - sequence.shift_;
    for (int64_t g = 0; g < num_kv_heads; ++g) {
      HeadCache& cache = sequence.head(layer, g);
      const float logit = decision[g * batch + b];
      if (decided >= 0 && sequence.shift_ > 0) cache.decide(decided, logit);
      // The key that this query no longer sees goes first: the new one takes its slot.
      cache.drop_expired_with(position, sequence.window_, sequence.shift_);
      cache.append_row(new_keys, new_values, b * num_kv_heads + g, position);
      if (sequence.shift_ == 0) cache.decide(position, logit);
      const int64_t offset = (b * num_kv_heads + g) * group * head_dim;
      DecodeHead& head = heads[static_cast<size_t>(b * num_kv_heads + g)];
      head.q = q.const_data_ptr<float>() + offset;
      head.out = out_BHd.data_ptr<float>() + offset;
      cache.point_to_rows(head);
      sequence.num_keys_read_ += head.num_rows;
    }
    ++sequence.num_tokens_[static_cast<size_t>(layer)];
  });
  decode_attention(heads, group, head_dim, stored, static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim))));
  return out_BHd;
}

bool CompactCache::make_room(int64_t num_new, int64_t max_bytes) {
  while (true) {
    int64_t bytes = 0;
    std::vector<float> candidates;
    for (const HeadCache& cache : heads_) bytes += cache.bytes_after_append(num_new);
    if (bytes <= max_bytes) return true;
    const int64_t newest = num_tokens_.front() - 1;       // every layer is at the same token between two calls
    const int64_t untouched = std::max(window_, shift_);  // a decision that is still to come needs its key
    for (const HeadCache& cache : heads_) {
      for (size_t i = 0; i < cache.positions().size(); ++i) {
        if (newest - cache.positions()[i] > untouched) candidates.push_back(cache.decisions()[i]);
      }
    }
    if (candidates.empty()) return false;
    // A little more than what is missing, so that the next tokens find room without another look at every key.
    const int64_t row_bytes = heads_.front().row_bytes();
    const int64_t wanted = (bytes - max_bytes + row_bytes - 1) / row_bytes + max_bytes / row_bytes / 64;
    const int64_t count = std::min<int64_t>(wanted, std::ssize(candidates));
    const auto last = candidates.begin() + (count - 1);
    std::nth_element(candidates.begin(), last, candidates.end(), std::greater<>());
    const float threshold = *last;
    int64_t num_at = std::count(candidates.begin(), last + 1, threshold);
    for (HeadCache& cache : heads_) num_at -= cache.drop_above(threshold, num_at, newest, untouched, num_new);
  }
}

int64_t CompactCache::allocated_bytes() const {
  int64_t bytes = 0;
  for (const HeadCache& cache : heads_) bytes += cache.allocated_bytes();
  return bytes;
}

int64_t CompactCache::live_bytes() const {
  int64_t bytes = 0;
  for (const HeadCache& cache : heads_) bytes += cache.live_bytes();
  return bytes;
}

int64_t CompactCache::num_live_keys() const {
  int64_t count = 0;
  for (const HeadCache& cache : heads_) count += cache.num_live();
  return count;
}

}  // namespace dms
