#include "model/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dms {

namespace {

// Capacity grows and shrinks in units of this many rows: at most that many are allocated and unused.
constexpr int64_t kPageRows = 8;

int64_t round_up_to_page(int64_t rows) { return (rows + kPageRows - 1) / kPageRows * kPageRows; }

}  // namespace

HeadCache::HeadCache(int64_t head_dim, const at::TensorOptions& options)
    : keys_cd_(at::empty({0, head_dim}, options)), values_cd_(at::empty({0, head_dim}, options)) {}

void HeadCache::reserve(int64_t rows) {
  const int64_t capacity = round_up_to_page(rows);
  if (capacity == keys_cd_.size(0)) return;
  for (at::Tensor* storage : {&keys_cd_, &values_cd_}) {
    at::Tensor grown = at::empty({capacity, storage->size(1)}, storage->options());
    const int64_t kept = std::min(num_live_, capacity);
    grown.slice(0, 0, kept).copy_(storage->slice(0, 0, kept));
    *storage = grown;
  }
}

void HeadCache::append(const at::Tensor& keys_nd, const at::Tensor& values_nd, int64_t first_position) {
  const int64_t count = keys_nd.size(0);
  if (num_live_ + count > keys_cd_.size(0)) reserve(num_live_ + count);
  keys_cd_.slice(0, num_live_, num_live_ + count).copy_(keys_nd);
  values_cd_.slice(0, num_live_, num_live_ + count).copy_(values_nd);
  for (int64_t i = 0; i < count; ++i) positions_.push_back(static_cast<int32_t>(first_position + i));
  evicted_.resize(positions_.size(), 0);
  num_live_ += count;
}

void HeadCache::decide(int64_t position, bool evict) {
  // The newest rows are decided about, and they stand at the end unless slots were reused.
  const auto found = std::find(positions_.rbegin(), positions_.rend(), static_cast<int32_t>(position));
  TORCH_CHECK(found != positions_.rend(), "a decision about a key that is not in the cache");
  evicted_[static_cast<size_t>(std::distance(found, positions_.rend()) - 1)] = evict ? 1 : 0;
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
  positions_.shrink_to_fit();
  evicted_.shrink_to_fit();
  reserve(num_live_);
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
    : num_kv_heads_(num_kv_heads), window_(window), shift_(shift), num_tokens_(static_cast<size_t>(num_layers), 0) {
  for (int64_t i = 0; i < num_layers * num_kv_heads; ++i) heads_.emplace_back(head_dim, options);
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

    // Additive mask over stored rows: the future, and evicted keys beyond the window.
    const int64_t rows = cache.num_live();
    at::Tensor mask_nr = at::zeros({count, rows}, at::kFloat);
    float* mask = mask_nr.data_ptr<float>();
    const std::vector<int32_t>& positions = cache.positions();
    const std::vector<uint8_t>& evicted = cache.evicted();
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t distance = first + i - positions[static_cast<size_t>(r)];
        if (distance < 0 || (distance > window_ && evicted[static_cast<size_t>(r)] != 0)) {
          mask[i * rows + r] = -std::numeric_limits<float>::infinity();
        } else {
          ++num_keys_read_;
        }
      }
    }
    const at::Tensor q_1Rnd = q_BHnd.slice(1, g * group, (g + 1) * group);
    outs.push_back(at::scaled_dot_product_attention(
        q_1Rnd, cache.keys().unsqueeze(0).unsqueeze(0).expand({1, group, rows, head_dim}),
        cache.values().unsqueeze(0).unsqueeze(0).expand({1, group, rows, head_dim}),
        mask_nr.to(q_BHnd.options()).unsqueeze(0).unsqueeze(0), 0.0, false, scale));
    cache.drop_expired(first + count - 1, window_);
  }
  num_tokens_[static_cast<size_t>(layer)] = first + count;
  return at::cat(outs, 1);
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
