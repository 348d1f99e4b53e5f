#include "model/kv_cache.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "model/decode_attention.h"

namespace dms {

namespace {

// Storage grows by a twentieth, so that growing costs each row a constant, and is given back when an eighth of it is
// unused; never in steps of less than this many rows.
constexpr int64_t kPageRows = 8;

int64_t grown_capacity(int64_t rows) { return (rows + std::max(kPageRows, rows / 20) - 1) / kPageRows * kPageRows; }

bool decodes_on_cpu(const at::Tensor& q, at::ScalarType stored) {
  return q.is_cpu() && q.scalar_type() == at::kFloat && has_decode_attention(stored) && q.size(-1) % 8 == 0;
}

}  // namespace

HeadCache::HeadCache(int64_t head_dim, const at::TensorOptions& options)
    : keys_cd_(at::empty({0, head_dim}, options)), values_cd_(at::empty({0, head_dim}, options)) {}

void HeadCache::set_capacity(int64_t rows) {
  for (at::Tensor* storage : {&keys_cd_, &values_cd_}) {
    at::Tensor resized = at::empty({rows, storage->size(1)}, storage->options());
    const int64_t kept = std::min(num_live_, rows);
    resized.slice(0, 0, kept).copy_(storage->slice(0, 0, kept));
    *storage = resized;
  }
}

void HeadCache::append(const at::Tensor& keys_nd, const at::Tensor& values_nd, int64_t first_position) {
  const int64_t count = keys_nd.size(0);
  if (num_live_ + count > keys_cd_.size(0)) set_capacity(grown_capacity(num_live_ + count));
  keys_cd_.slice(0, num_live_, num_live_ + count).copy_(keys_nd);
  values_cd_.slice(0, num_live_, num_live_ + count).copy_(values_nd);
  for (int64_t i = 0; i < count; ++i) positions_.push_back(static_cast<int32_t>(first_position + i));
  evicted_.resize(positions_.size(), 0);
  num_live_ += count;
}

int64_t HeadCache::find_row(int64_t position) const {
  // New rows are appended and freed slots filled from the end, so a recent position is near the end.
  const auto found = std::find(positions_.rbegin(), positions_.rend(), static_cast<int32_t>(position));
  return found == positions_.rend() ? -1 : std::distance(found, positions_.rend()) - 1;
}

void HeadCache::decide(int64_t position, bool evict) {
  const int64_t row = find_row(position);
  TORCH_CHECK(row >= 0, "a decision about a key that is not in the cache");
  evicted_[static_cast<size_t>(row)] = evict ? 1 : 0;
}

void HeadCache::remove_row(int64_t row) {
  const int64_t last = --num_live_;
  if (row != last) {
    for (at::Tensor* storage : {&keys_cd_, &values_cd_}) {
      if (storage->is_cpu()) {
        auto* bytes = static_cast<std::byte*>(storage->data_ptr());
        const auto row_bytes = static_cast<int64_t>(storage->element_size()) * storage->size(1);
        std::memcpy(bytes + row * row_bytes, bytes + last * row_bytes, static_cast<size_t>(row_bytes));
      } else {
        storage->select(0, row).copy_(storage->select(0, last));
      }
    }
    positions_[static_cast<size_t>(row)] = positions_.back();
    evicted_[static_cast<size_t>(row)] = evicted_.back();
  }
  positions_.pop_back();
  evicted_.pop_back();
}

void HeadCache::give_back_unused() {
  if (keys_cd_.size(0) <= grown_capacity(num_live_) + num_live_ / 16) return;
  set_capacity(grown_capacity(num_live_));
  positions_.shrink_to_fit();
  evicted_.shrink_to_fit();
}

void HeadCache::drop_expired_with(int64_t newest_position, int64_t window, int64_t shift) {
  // Just out of the window; or decided about just now, when that comes later still.
  const int64_t position = newest_position - std::max(window + 1, shift);
  if (position < 0) return;
  const int64_t row = find_row(position);
  if (row >= 0 && evicted_[static_cast<size_t>(row)] != 0) remove_row(row);
  give_back_unused();
}

void HeadCache::drop_expired(int64_t newest_position, int64_t window) {
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < num_live_; ++i) {
    const size_t row = static_cast<size_t>(i);
    if (evicted_[row] == 0 || newest_position - positions_[row] <= window) kept.push_back(i);
  }
  const auto num_kept = static_cast<int64_t>(kept.size());
  if (num_kept == num_live_) return;

  // Fill the holes before `num_kept` with the live rows behind it: the fewest copies.
  std::vector<int64_t> holes, movers;
  size_t next_kept = 0;
  for (int64_t i = 0; i < num_kept; ++i) {
    if (next_kept < kept.size() && kept[next_kept] == i) {
      ++next_kept;
    } else {
      holes.push_back(i);
    }
  }
  movers.assign(kept.end() - static_cast<std::ptrdiff_t>(holes.size()), kept.end());
  if (!holes.empty()) {
    const at::Tensor from = at::tensor(movers, at::kLong).to(keys_cd_.device());
    const at::Tensor to = at::tensor(holes, at::kLong).to(keys_cd_.device());
    for (at::Tensor* storage : {&keys_cd_, &values_cd_}) storage->index_copy_(0, to, storage->index_select(0, from));
    for (size_t i = 0; i < holes.size(); ++i) {
      positions_[static_cast<size_t>(holes[i])] = positions_[static_cast<size_t>(movers[i])];
      evicted_[static_cast<size_t>(holes[i])] = evicted_[static_cast<size_t>(movers[i])];
    }
  }
  num_live_ = num_kept;
  positions_.resize(static_cast<size_t>(num_kept));
  evicted_.resize(static_cast<size_t>(num_kept));
  give_back_unused();
}

HeadCache HeadCache::clone() const {
  HeadCache copy = *this;
  copy.keys_cd_ = keys_cd_.clone();
  copy.values_cd_ = values_cd_.clone();
  return copy;
}

int64_t HeadCache::allocated_bytes() const {
  return static_cast<int64_t>(keys_cd_.storage().nbytes() + values_cd_.storage().nbytes() +
                              positions_.capacity() * sizeof(int32_t) + evicted_.capacity());
}

int64_t HeadCache::live_bytes() const {
  return num_live_ * keys_cd_.size(1) * 2 * static_cast<int64_t>(keys_cd_.element_size());
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
  const at::Tensor evict_Gn = (logit_Gn > 0).to(at::kCPU, at::kByte).contiguous();
  const uint8_t* evict = evict_Gn.data_ptr<uint8_t>();

  std::vector<at::Tensor> outs;
  for (int64_t g = 0; g < num_kv_heads_; ++g) {
    HeadCache& cache = head(layer, g);
    cache.append(k_BGnd.select(1, g).squeeze(0), v_BGnd.select(1, g).squeeze(0), first);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t key = first + i - shift_;  // the key that new token i decides about
      if (key >= 0) cache.decide(key, evict[g * count + i] != 0);
    }

    // Additive mask over stored rows: the future, and evicted keys beyond the window.  Old survivors need none.
    const int64_t rows = cache.num_live();
    at::Tensor mask_nr = at::zeros({count, rows}, at::kFloat);
    float* mask = mask_nr.data_ptr<float>();
    num_keys_read_ += count * rows;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = cache.positions()[static_cast<size_t>(r)];
      const bool evicted = cache.evicted()[static_cast<size_t>(r)] != 0;
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
        q_1Rnd, cache.keys().to(q_BHnd.scalar_type()).unsqueeze(0).unsqueeze(0).expand({1, group, rows, head_dim}),
        cache.values().to(q_BHnd.scalar_type()).unsqueeze(0).unsqueeze(0).expand({1, group, rows, head_dim}),
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
  const at::Tensor q = q_BHd.contiguous();
  at::Tensor out_BHd = at::empty_like(q);
  const at::Tensor evict_GB = (logit_GB > 0).to(at::kByte).contiguous();
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  const auto* evict = evict_GB.data_ptr<uint8_t>();
  const auto* queries = q.data_ptr<float>();
  auto* outs = out_BHd.data_ptr<float>();
  std::vector<int64_t> keys_read(static_cast<size_t>(batch * num_kv_heads));
  at::parallel_for(0, batch * num_kv_heads, 1, [&](int64_t begin, int64_t end) {
    const at::NoGradGuard worker_no_grad;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / num_kv_heads, g = i % num_kv_heads;
      CompactCache& sequence = *caches[static_cast<size_t>(b)];
      HeadCache& cache = sequence.head(layer, g);
      const int64_t position = sequence.num_tokens(layer);
      const int64_t decided = position - sequence.shift_;
      if (decided >= 0 && sequence.shift_ > 0) cache.decide(decided, evict[g * batch + b] != 0);
      // The key that this query no longer sees goes first: the new one takes its slot.
      cache.drop_expired_with(position, sequence.window_, sequence.shift_);
      cache.append(k_BGd[b].slice(0, g, g + 1), v_BGd[b].slice(0, g, g + 1), position);
      if (sequence.shift_ == 0) cache.decide(position, evict[g * batch + b] != 0);
      keys_read[static_cast<size_t>(i)] = cache.num_live();
      const int64_t offset = (b * num_kv_heads + g) * group * head_dim;
      decode_attention(queries + offset, group, head_dim, cache.keys().data_ptr(), cache.values().data_ptr(),
                       cache.num_live(), sequence.stored_dtype_, scale, outs + offset);
    }
  });
  for (int64_t b = 0; b < batch; ++b) {
    CompactCache& sequence = *caches[static_cast<size_t>(b)];
    ++sequence.num_tokens_[static_cast<size_t>(layer)];
    for (int64_t g = 0; g < num_kv_heads; ++g) {
      sequence.num_keys_read_ += keys_read[static_cast<size_t>(b * num_kv_heads + g)];
    }
  }
  return out_BHd;
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
