#include "model/kv_cache.h"

#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "model/decode_attention.h"
#include "model/paged_attention.h"
#include "model/parallel_tasks.h"
#include "model/pinned.h"

namespace dms {

namespace {

bool decodes_on_cpu(const at::Tensor& q, at::ScalarType stored) {
  return q.is_cpu() && q.scalar_type() == at::kFloat && has_decode_attention(stored) && q.size(-1) % 8 == 0;
}

double score_scale(const at::Tensor& q) { return 1.0 / std::sqrt(static_cast<double>(q.size(-1))); }

}  // namespace

CompactCache::CompactCache(std::shared_ptr<KvPool> pool, int64_t num_layers, int64_t num_kv_heads, int64_t window,
                           int64_t shift)
    : pool_(std::move(pool)),
      num_kv_heads_(num_kv_heads),
      window_(window),
      shift_(shift),
      num_tokens_(static_cast<size_t>(num_layers), 0) {
  for (int64_t i = 0; i < num_layers * num_kv_heads; ++i) heads_.emplace_back(*pool_);
}

CompactCache CompactCache::clone() const {
  CompactCache copy(pool_, std::ssize(num_tokens_), num_kv_heads_, window_, shift_);
  copy.num_tokens_ = num_tokens_;
  copy.num_keys_read_ = num_keys_read_;
  copy.heads_.clear();
  for (const HeadCache& head : heads_) copy.heads_.push_back(head.clone());
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
  const int64_t count = q_BHnd.size(2);
  if (count == 1) {
    return attend_each({this}, layer, q_BHnd.select(2, 0), k_BGnd.select(2, 0), v_BGnd.select(2, 0), logit_Gn)
        .unsqueeze(2);
  }
  const int64_t group = q_BHnd.size(1) / num_kv_heads_;
  const at::Tensor decision_Gn = logit_Gn.to(at::kCPU, at::kFloat).contiguous();
  std::vector<at::Tensor> outs;
  for (int64_t g = 0; g < num_kv_heads_; ++g) {
    outs.push_back(attend_chunk(layer, g, q_BHnd.slice(1, g * group, (g + 1) * group), k_BGnd[0][g], v_BGnd[0][g],
                                decision_Gn.const_data_ptr<float>() + g * count));
  }
  num_tokens_[static_cast<size_t>(layer)] += count;
  return at::cat(outs, 1);
}

at::Tensor CompactCache::attend_chunk(int64_t layer, int64_t kv_head, const at::Tensor& q_1Rnd, const at::Tensor& k_nd,
                                      const at::Tensor& v_nd, const float* decision_n) {
  HeadCache& cache = head(layer, kv_head);
  const int64_t group = q_1Rnd.size(1), count = q_1Rnd.size(2), first = num_tokens(layer);
  const StoredRows new_keys = to_stored(k_nd, pool_->stored_dtype());
  const StoredRows new_values = to_stored(v_nd, pool_->stored_dtype());
  std::vector<float> new_decisions(static_cast<size_t>(count), kUndecided);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t key = first + i - shift_;  // the key that new token i decides about
    if (key >= first) {
      new_decisions[static_cast<size_t>(key - first)] = decision_n[i];
    } else if (key >= 0) {
      cache.decide(key, decision_n[i]);
    }
  }

  // Additive mask over the stored rows, then the chunk's: the future, and evicted keys beyond the window.
  const int64_t stored = cache.num_live(), rows = stored + count;
  at::Tensor mask_nr = at::zeros({count, rows}, at::kFloat);
  float* mask = mask_nr.data_ptr<float>();
  num_keys_read_ += count * rows;
  const auto hide = [&](int64_t i, int64_t row) {
    mask[i * rows + row] = -std::numeric_limits<float>::infinity();
    --num_keys_read_;
  };
  for (int64_t row = 0; row < stored; ++row) {
    if (cache.decisions()[static_cast<size_t>(row)] <= 0.0F) continue;
    const int64_t last_seen_by = cache.positions()[static_cast<size_t>(row)] + window_;
    for (int64_t i = std::max<int64_t>(last_seen_by + 1 - first, 0); i < count; ++i) hide(i, row);
  }
  for (int64_t key = 0; key < count; ++key) {
    for (int64_t i = 0; i < key; ++i) hide(i, stored + key);
    if (new_decisions[static_cast<size_t>(key)] <= 0.0F) continue;
    for (int64_t i = key + window_ + 1; i < count; ++i) hide(i, stored + key);
  }
  const at::ScalarType dtype = q_1Rnd.scalar_type();
  const auto for_group = [&](const at::Tensor& stored_rd, const StoredRows& new_nd) {
    return at::cat({stored_rd, from_stored(new_nd, dtype)}).expand({1, group, rows, k_nd.size(1)});
  };
  const at::Tensor out_1Rnd = at::scaled_dot_product_attention(
      q_1Rnd, for_group(cache.keys(dtype), new_keys), for_group(cache.values(dtype), new_values),
      mask_nr.to(q_1Rnd.options()).unsqueeze(0).unsqueeze(0), 0.0, false, score_scale(q_1Rnd));

  // Of the chunk only what the next token may see is stored: nothing that goes at once takes memory.
  const int64_t newest = first + count - 1;
  cache.drop_expired(newest, window_);
  std::vector<int64_t> kept;
  std::vector<int32_t> kept_positions;
  std::vector<float> kept_decisions;
  for (int64_t key = 0; key < count; ++key) {
    const float decision = new_decisions[static_cast<size_t>(key)];
    if (decision > 0.0F && newest - (first + key) > window_) continue;
    kept.push_back(key);
    kept_positions.push_back(static_cast<int32_t>(first + key));
    kept_decisions.push_back(decision);
  }
  const at::Tensor kept_m = to_device(kept, k_nd.device());
  const auto of_kept = [&](const StoredRows& x) { return select_rows(x, kept_m); };
  cache.append(of_kept(new_keys), of_kept(new_values), kept_positions, kept_decisions);
  return out_1Rnd;
}

KvRow CompactCache::advance(int64_t layer, int64_t kv_head, float decision) {
  HeadCache& cache = head(layer, kv_head);
  const int64_t position = num_tokens(layer), decided = position - shift_;
  if (decided >= 0 && shift_ > 0) cache.decide(decided, decision);
  // The key that this query no longer sees goes first: the new one takes its row.
  const KvRow place = cache.take_row(position, window_, shift_);
  if (shift_ == 0) cache.decide(position, decision);
  num_keys_read_ += cache.num_live();
  return place;
}

at::Tensor CompactCache::attend_each(const std::vector<CompactCache*>& caches, int64_t layer, const at::Tensor& q_BHd,
                                     const at::Tensor& k_BGd, const at::Tensor& v_BGd, const at::Tensor& logit_GB) {
  const at::NoGradGuard no_grad;
  const KvPool& pool = caches.front()->pool();
  const int64_t batch = q_BHd.size(0), num_kv_heads = k_BGd.size(1), head_dim = q_BHd.size(2);
  const int64_t group = q_BHd.size(1) / num_kv_heads;
  const at::Tensor decision_GB = logit_GB.to(at::kCPU, at::kFloat).contiguous();
  const float* decision = decision_GB.const_data_ptr<float>();
  // Rows b * G + g.
  const auto rows_of = [&](const at::Tensor& x_BGd) {
    return to_stored(x_BGd.contiguous().view({batch * num_kv_heads, head_dim}), pool.stored_dtype());
  };
  const StoredRows new_keys = rows_of(k_BGd), new_values = rows_of(v_BGd);
  const auto each_head = [&](int64_t b, const auto& visit) {
    CompactCache& sequence = *caches[static_cast<size_t>(b)];
    for (int64_t g = 0; g < num_kv_heads; ++g) {
      const KvRow place = sequence.advance(layer, g, decision[g * batch + b]);
      visit(b * num_kv_heads + g, sequence.head(layer, g), place);
    }
    ++sequence.num_tokens_[static_cast<size_t>(layer)];
  };

  if (decodes_on_cpu(q_BHd, pool.stored_dtype())) {
    const at::Tensor q = q_BHd.contiguous();
    const at::Tensor out_BHd = at::empty_like(q);
    std::vector<DecodeHead> heads(static_cast<size_t>(batch * num_kv_heads));
    run_tasks(batch, [&](int64_t b) {
      each_head(b, [&](int64_t i, const HeadCache& cache, const KvRow& place) {
        pool.write_row(place, new_keys, new_values, i);
        const int64_t offset = i * group * head_dim;
        heads[static_cast<size_t>(i)] = {q.const_data_ptr<float>() + offset, cache.pages().data(), cache.num_live(),
                                         out_BHd.data_ptr<float>() + offset};
      });
    });
    decode_attention(heads, group, head_dim, pool.stored_dtype(), static_cast<float>(score_scale(q)));
    return out_BHd;
  }

  std::vector<const HeadCache*> heads(static_cast<size_t>(batch * num_kv_heads));
  std::vector<KvRow> places(heads.size());
  for (int64_t b = 0; b < batch; ++b) {
    each_head(b, [&](int64_t i, const HeadCache& cache, const KvRow& place) {
      heads[static_cast<size_t>(i)] = &cache;
      places[static_cast<size_t>(i)] = place;
    });
  }
  pool.write(places, new_keys, new_values);
  const at::Tensor q_NRd = q_BHd.reshape({batch * num_kv_heads, group, head_dim});
  return paged_attention(page_kernel(q_NRd), pool, heads, q_NRd, score_scale(q_NRd)).view(q_BHd.sizes());
}

bool CompactCache::make_room(int64_t num_new, int64_t max_bytes) {
  while (true) {
    std::vector<float> candidates;
    const int64_t bytes = allocated_bytes() + num_pages_wanted(num_new) * pool_->page_bytes();
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
    const int64_t row_bytes = pool_->page_bytes() / pool_->page_rows();
    const int64_t wanted = (bytes - max_bytes + row_bytes - 1) / row_bytes + max_bytes / row_bytes / 64;
    const int64_t count = std::min<int64_t>(wanted, std::ssize(candidates));
    const auto last = candidates.begin() + (count - 1);
    std::nth_element(candidates.begin(), last, candidates.end(), std::greater<>());
    const float threshold = *last;
    int64_t num_at = std::count(candidates.begin(), last + 1, threshold);
    for (HeadCache& cache : heads_) num_at -= cache.drop_above(threshold, num_at, newest, untouched);
  }
}

int64_t CompactCache::num_pages_wanted(int64_t num_new) const {
  int64_t pages = 0;
  for (const HeadCache& cache : heads_) pages += cache.num_pages_wanted(num_new);
  return pages;
}

int64_t CompactCache::allocated_bytes() const {
  int64_t pages = 0;
  for (const HeadCache& cache : heads_) pages += cache.num_pages();
  return pages * pool_->page_bytes();
}

int64_t CompactCache::live_bytes() const { return pool_->stored_bytes(num_live_keys()); }

int64_t CompactCache::num_live_keys() const {
  int64_t count = 0;
  for (const HeadCache& cache : heads_) count += cache.num_live();
  return count;
}

}  // namespace dms
