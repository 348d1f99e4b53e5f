#include "model/attention_cpu_sparse.h"

#include <algorithm>
#include <limits>

#include "model/far_square.h"
#include "model/parallel_tasks.h"

namespace dms {

namespace {

// Gradients of survivors are summed in this many separate runs over the blocks of a head, so that a head's blocks can
// run side by side.  A constant, because the order of summation follows from it.
constexpr int64_t kStripes = 4;
// Keys of a tile of the backward pass: two tiles of [R * rows, keys] stay in the second-level cache.
constexpr int64_t kTileKeys = 256;

struct Task {
  int64_t cost, head, index;  // index: a block or a stripe
};

// Runs every task once, expensive ones first.
template <class Run>
void run_by_cost(std::vector<Task> tasks, const Run& run) {
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.cost > b.cost; });
  run_tasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const Task& task = tasks[static_cast<size_t>(i)];
    run(task.head, task.index);
  });
}

// What is visible inside a block: row i (of the far part) sees local keys j <= i + window + 1, those with j <= i
// from beyond the window.
class LocalMask {
 public:
  LocalMask(int64_t num_rows, int64_t window, const at::TensorOptions& options) : window_(window) {
    const at::Tensor i = at::arange(num_rows, at::kLong).unsqueeze(1);
    const at::Tensor j = at::arange(num_rows + window + 1, at::kLong).unsqueeze(0);
    hidden_ = at::zeros({num_rows, num_rows + window + 1}, options)
                  .masked_fill_(j > i + window + 1, -std::numeric_limits<double>::infinity());
    far_ = (j.slice(1, 0, num_rows) <= i).to(options.dtype());
  }

  // [rows, rows] of ones where a key is far, for its first `rows` local keys; no other is.
  at::Tensor far(int64_t num_rows) const { return far_.slice(0, 0, num_rows).slice(1, 0, num_rows); }
  // [rows, rows + window + 1], additive.
  at::Tensor with_bias(int64_t num_rows, const at::Tensor& bias_of_keys) const {
    at::Tensor mask = hidden_.slice(0, 0, num_rows).slice(1, 0, num_rows + window_ + 1).clone();
    mask.slice(1, 0, num_rows).add_(far(num_rows) * bias_of_keys.slice(0, 0, num_rows));
    return mask;
  }

 private:
  int64_t window_;
  at::Tensor hidden_, far_;
};

// The tensors of one KV head and the rows of one block.
struct Geometry {
  Geometry(const AttentionTensors& in, const Survivors& survivors)
      : window(survivors.window()), repeats(in.q_BHTd.size(1) / in.k_BGTd.size(1)), head_dim(in.q_BHTd.size(3)) {}
  // [R, rows, ...] of the query heads that read KV head g; x_BHT: any tensor [1, H, T, ...].
  at::Tensor rows(const at::Tensor& x_BHT, int64_t g, int64_t begin, int64_t end) const {
    return x_BHT.select(0, 0).slice(0, g * repeats, (g + 1) * repeats).slice(1, begin + window + 1, end + window + 1);
  }
  // [rows + window + 1, ...]: the keys that are local to the block.
  at::Tensor local_keys(const at::Tensor& x_BGT, int64_t g, int64_t begin, int64_t end) const {
    return x_BGT.select(0, 0).select(0, g).slice(0, begin, end + window + 1);
  }
  at::Tensor head_keys(const at::Tensor& x_BGT, int64_t g) const { return x_BGT.select(0, 0).select(0, g); }

  int64_t window, repeats, head_dim;
};

FlashOutput flash(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool is_causal,
                  const std::optional<at::Tensor>& mask, double scale) {
  auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal, mask, scale);
  return {out, lse};
}

std::vector<Task> block_tasks(const Survivors& survivors) {
  std::vector<Task> tasks;
  for (int64_t block = 0; block < survivors.num_blocks(); ++block) {
    for (int64_t g = 0; g < survivors.num_heads(); ++g) tasks.push_back({survivors.num_before(g, block), g, block});
  }
  return tasks;
}

// Keys ready for the tiles of the backward pass: S = q k^T + bias - lse and dP - delta come out of one product each,
// with rows [q * scale, 1, -lse] and [dOut, -delta] against keys [k, bias, 1] and [v, 1].
struct TileKeys {
  TileKeys(const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias, const at::TensorOptions& options)
      : head_dim(k.size(1)),
        key(at::ones({k.size(0), head_dim + 2}, options)),
        value(at::ones({k.size(0), head_dim + 1}, options)) {
    key.slice(1, 0, head_dim).copy_(k);
    key.select(1, head_dim).copy_(bias);
    value.slice(1, 0, head_dim).copy_(v);
  }
  int64_t head_dim;
  at::Tensor key, value;
};

struct TileRows {
  TileRows(const at::Tensor& q, const at::Tensor& dout, const at::Tensor& out, const at::Tensor& lse, double scale,
           const at::TensorOptions& options)
      : repeats(q.size(0)), head_dim(q.size(2)) {
    const int64_t num_rows = q.size(1);
    at::Tensor query_Rrd = at::ones({repeats, num_rows, head_dim + 2}, options);
    query_Rrd.slice(2, 0, head_dim).copy_(q).mul_(scale);
    query_Rrd.select(2, head_dim + 1).copy_(lse).neg_();
    at::Tensor dout_Rrd = at::empty({repeats, num_rows, head_dim + 1}, options);
    dout_Rrd.slice(2, 0, head_dim).copy_(dout);
    dout_Rrd.select(2, head_dim).copy_(at::sum(dout_Rrd.slice(2, 0, head_dim) * out, {2}).neg_());
    query = query_Rrd.view({repeats * num_rows, head_dim + 2});
    grad = dout_Rrd.view({repeats * num_rows, head_dim + 1});
  }
  int64_t repeats, head_dim;
  at::Tensor query, grad;
};

struct KeyGradients {
  KeyGradients(int64_t num_keys, int64_t head_dim, const at::TensorOptions& options)
      : dk(at::zeros({num_keys, head_dim}, options)),
        dv(at::zeros({num_keys, head_dim}, options)),
        dbias(at::zeros({num_keys}, options)) {}
  void add(const KeyGradients& other) {
    dk.add_(other.dk);
    dv.add_(other.dv);
    dbias.add_(other.dbias);
  }
  at::Tensor dk, dv, dbias;
};

// Adds the gradients of `rows` against the first `num_keys` of `keys`.  `local`: undefined for a rectangle; otherwise
// the block's additive mask, whose far corner `far` alone carries a bias.
struct LocalPart {
  at::Tensor mask, far;
};
void add_backward(const TileRows& rows, const TileKeys& keys, int64_t num_keys, const LocalPart& local,
                  at::Tensor& scratch, at::Tensor& dq, KeyGradients& total) {
  const int64_t num_rows = rows.query.size(0), d = rows.head_dim;
  const at::Tensor query = rows.query.slice(1, 0, d), grad = rows.grad.slice(1, 0, d);
  for (int64_t begin = 0; begin < num_keys; begin += kTileKeys) {
    const int64_t end = std::min(num_keys, begin + kTileKeys), width = end - begin;
    const at::Tensor key = keys.key.slice(0, begin, end);
    at::Tensor p = scratch.select(0, 0).slice(0, 0, num_rows * width).view({num_rows, width});
    at::Tensor ds = scratch.select(0, 1).slice(0, 0, num_rows * width).view({num_rows, width});
    at::mm_out(p, rows.query, key.t());
    if (local.mask.defined()) p.view({rows.repeats, -1, width}).add_(local.mask.slice(1, begin, end));
    p.exp_();
    total.dv.slice(0, begin, end).addmm_(p.t(), grad);
    at::mm_out(ds, rows.grad, keys.value.slice(0, begin, end).t());
    ds.mul_(p);
    total.dk.slice(0, begin, end).addmm_(ds.t(), query);
    dq.addmm_(ds, key.slice(1, 0, d));
    if (!local.mask.defined()) {
      total.dbias.slice(0, begin, end).add_(ds.sum(0));
    } else if (begin < local.far.size(1)) {
      const at::Tensor far = local.far.slice(1, begin, end);
      total.dbias.slice(0, begin, begin + far.size(1))
          .add_((ds.view({rows.repeats, -1, width}).sum(0).slice(1, 0, far.size(1)) * far).sum(0));
    }
  }
}

}  // namespace

FlashOutput cpu_sparse(const AttentionTensors& in, const Survivors& survivors, double scale) {
  const Geometry geometry(in, survivors);
  const at::Tensor &q = in.q_BHTd, &k = in.k_BGTd, &v = in.v_BGTd;
  const int64_t prefix = geometry.window + 1;
  const auto state_options =
      in.bias_BGT.options();  // of the log-sum-exp and of biases: float32, or float64 for float64
  FlashOutput result{at::empty_like(q), at::empty({1, q.size(1), q.size(2)}, state_options)};
  const FlashOutput before =
      flash(q.slice(2, 0, prefix), k.slice(2, 0, prefix), v.slice(2, 0, prefix), true, {}, scale);
  result.out_BHTd.slice(2, 0, prefix).copy_(before.out_BHTd);
  result.lse_BHT.slice(2, 0, prefix).copy_(before.lse_BHT);

  std::vector<AttentionTensors> gathered(static_cast<size_t>(survivors.num_heads()));
  for (int64_t g = 0; g < survivors.num_heads(); ++g) {
    const auto gather = [&](const at::Tensor& x) {
      return geometry.head_keys(x, g).index_select(0, survivors.keys(g));
    };
    gathered[static_cast<size_t>(g)] = {{}, gather(k), gather(v), gather(in.bias_BGT)};
  }
  const LocalMask local_mask(survivors.block_end(0), geometry.window, state_options);

  run_by_cost(block_tasks(survivors), [&](int64_t g, int64_t block) {
    const int64_t begin = survivors.block_begin(block), end = survivors.block_end(block), num_rows = end - begin;
    const at::Tensor q_Rrd = geometry.rows(q, g, begin, end);
    const at::Tensor mask = local_mask.with_bias(num_rows, geometry.local_keys(in.bias_BGT, g, begin, end));
    const auto single_head = [](const at::Tensor& x) { return x.unsqueeze(0).unsqueeze(0); };
    const FlashOutput local = flash(q_Rrd.unsqueeze(0), single_head(geometry.local_keys(k, g, begin, end)),
                                    single_head(geometry.local_keys(v, g, begin, end)), false, mask, scale);
    const at::Tensor out_Rrd = local.out_BHTd.squeeze(0), lse_Rr = local.lse_BHT.squeeze(0);
    if (const int64_t num_keys = survivors.num_before(g, block); num_keys > 0) {
      const AttentionTensors& keys = gathered[static_cast<size_t>(g)];
      const FlashOutput far =
          flash(q_Rrd.reshape({1, 1, -1, geometry.head_dim}), single_head(keys.k_BGTd.slice(0, 0, num_keys)),
                single_head(keys.v_BGTd.slice(0, 0, num_keys)), false,
                keys.bias_BGT.slice(0, 0, num_keys).view({1, 1, 1, num_keys}), scale);
      merge(out_Rrd, lse_Rr, far.out_BHTd.reshape(out_Rrd.sizes()), far.lse_BHT.reshape(lse_Rr.sizes()));
    }
    geometry.rows(result.out_BHTd, g, begin, end).copy_(out_Rrd);
    geometry.rows(result.lse_BHT, g, begin, end).copy_(lse_Rr);
  });
  return result;
}

AttentionGradients cpu_sparse_backward(const at::Tensor& dout, const AttentionTensors& in, const FlashOutput& merged,
                                       const Survivors& survivors, double scale) {
  const Geometry geometry(in, survivors);
  const at::Tensor &q = in.q_BHTd, &k = in.k_BGTd, &v = in.v_BGTd;
  const int64_t d = geometry.head_dim, num_heads = survivors.num_heads(), num_blocks = survivors.num_blocks();
  const auto options = in.bias_BGT.options();
  const LocalMask local_mask(survivors.block_end(0), geometry.window, options);

  std::vector<TileKeys> gathered;
  for (int64_t g = 0; g < num_heads; ++g) {
    const auto gather = [&](const at::Tensor& x) {
      return geometry.head_keys(x, g).index_select(0, survivors.keys(g));
    };
    gathered.emplace_back(gather(k), gather(v), gather(in.bias_BGT), options);
  }

  AttentionGradients result{at::empty_like(q), at::zeros_like(k), at::zeros_like(v), at::zeros_like(in.bias_BGT)};
  std::vector<std::optional<KeyGradients>> local(static_cast<size_t>(num_heads * num_blocks));
  std::vector<std::optional<KeyGradients>> far(static_cast<size_t>(num_heads * kStripes));
  const int64_t stripes = std::min(kStripes, num_blocks);
  std::vector<Task> tasks;
  for (int64_t g = 0; g < num_heads; ++g) {
    for (int64_t stripe = 0; stripe < stripes; ++stripe) tasks.push_back({survivors.num_keys(g), g, stripe});
  }
  run_by_cost(tasks, [&](int64_t g, int64_t stripe) {
    at::Tensor scratch = at::empty({2, geometry.repeats * survivors.block_end(0) * kTileKeys}, options);
    KeyGradients& far_total =
        far[static_cast<size_t>(g * kStripes + stripe)].emplace(survivors.num_keys(g), d, options);
    for (int64_t block = stripe; block < num_blocks; block += kStripes) {
      const int64_t begin = survivors.block_begin(block), end = survivors.block_end(block), num_rows = end - begin;
      const TileRows rows(geometry.rows(q, g, begin, end), geometry.rows(dout, g, begin, end),
                          geometry.rows(merged.out_BHTd, g, begin, end), geometry.rows(merged.lse_BHT, g, begin, end),
                          scale, options);
      at::Tensor dq = at::zeros({rows.query.size(0), d}, options);
      const int64_t num_local = num_rows + geometry.window + 1;
      const TileKeys local_keys(geometry.local_keys(k, g, begin, end), geometry.local_keys(v, g, begin, end),
                                at::zeros({num_local}, options), options);
      KeyGradients& local_total = local[static_cast<size_t>(g * num_blocks + block)].emplace(num_local, d, options);
      const LocalPart local_part{local_mask.with_bias(num_rows, geometry.local_keys(in.bias_BGT, g, begin, end)),
                                 local_mask.far(num_rows)};
      add_backward(rows, local_keys, num_local, local_part, scratch, dq, local_total);
      add_backward(rows, gathered[static_cast<size_t>(g)], survivors.num_before(g, block), {}, scratch, dq, far_total);
      geometry.rows(result.dq_BHTd, g, begin, end).copy_(dq.mul_(scale).view({geometry.repeats, num_rows, d}));
    }
  });

  // Local keys of neighbouring blocks overlap: added in order, one thread a head.
  std::vector<Task> heads;
  for (int64_t g = 0; g < num_heads; ++g) heads.push_back({survivors.num_keys(g), g, 0});
  run_by_cost(heads, [&](int64_t g, int64_t) {
    const int64_t num_keys = survivors.num_keys(g);
    KeyGradients total(k.size(2), d, options);
    for (int64_t block = 0; block < num_blocks; ++block) {
      const KeyGradients& part = *local[static_cast<size_t>(g * num_blocks + block)];
      const int64_t begin = survivors.block_begin(block), num_local = part.dk.size(0);
      total.dk.slice(0, begin, begin + num_local).add_(part.dk);
      total.dv.slice(0, begin, begin + num_local).add_(part.dv);
      total.dbias.slice(0, begin, begin + num_local).add_(part.dbias);
    }
    if (num_keys > 0) {
      KeyGradients& sum = *far[static_cast<size_t>(g * kStripes)];
      for (int64_t stripe = 1; stripe < stripes; ++stripe) sum.add(*far[static_cast<size_t>(g * kStripes + stripe)]);
      const at::Tensor& keys = survivors.keys(g);
      total.dk.index_add_(0, keys, sum.dk);
      total.dv.index_add_(0, keys, sum.dv);
      total.dbias.index_add_(0, keys, sum.dbias);
    }
    geometry.head_keys(result.dk_BGTd, g).copy_(total.dk);
    geometry.head_keys(result.dv_BGTd, g).copy_(total.dv);
    geometry.head_keys(result.dbias_BGT, g).copy_(total.dbias);
  });

  // The first window + 1 queries have no far key.
  const int64_t prefix = geometry.window + 1;
  auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      dout.slice(2, 0, prefix), q.slice(2, 0, prefix), k.slice(2, 0, prefix), v.slice(2, 0, prefix),
      merged.out_BHTd.slice(2, 0, prefix), merged.lse_BHT.slice(2, 0, prefix), 0.0, true, {}, scale);
  result.dq_BHTd.slice(2, 0, prefix).copy_(dq);
  result.dk_BGTd.slice(2, 0, prefix).add_(dk);
  result.dv_BGTd.slice(2, 0, prefix).add_(dv);
  return result;
}

}  // namespace dms
