#include "model/attention_cpu_tiles.h"

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <limits>

#include "model/attention_tile.h"
#include "model/parallel_tasks.h"

namespace dms {

namespace {

// Gradients of keys are summed in this many separate runs over the blocks of a head, so that a head's blocks can run
// side by side.  A constant, because the order of summation follows from it.
constexpr int64_t kStripes = 4;
// Elements of a tile.  The backward pass works on two: in float32 they fill 1 MiB, a second-level cache.
constexpr int64_t kTileElements = 128 * 1024;
// Keys are laid out, and tiles begin, in panels of so many.
constexpr int64_t kPanelKeys = 64;

// out_MN = a_MK b_KN, or that much more of it; rows of all three are contiguous.  In float32 through the small-matrix
// kernels that LibTorch's own attention in bfloat16 is made of: they pack nothing, and reach 108 to 114 GFLOP/s on a core
// where at::mm of the same tiles reaches 92.  Such a kernel is compiled for each set of sizes and strides that occurs, so
// callers keep to few.
enum class Product { replaces, adds };
void multiply(const at::Tensor& a_MK, const at::Tensor& b_KN, Product product, at::Tensor out_MN) {
  const bool adds = product == Product::adds;
  if (out_MN.scalar_type() == at::kFloat) {
    at::native::cpublas::brgemm(a_MK.size(0), b_KN.size(1), a_MK.size(1), a_MK.stride(0), b_KN.stride(0),
                                out_MN.stride(0), adds, a_MK.const_data_ptr<float>(), b_KN.const_data_ptr<float>(),
                                out_MN.mutable_data_ptr<float>(), /*is_vnni=*/false);
  } else if (adds) {
    out_MN.addmm_(a_MK, b_KN);
  } else {
    at::mm_out(out_MN, a_MK, b_KN);
  }
}

struct Block {
  int64_t begin, end;   // queries
  int64_t first_local;  // its own keys are [first_local, end)
  int64_t num_before;   // survivors before first_local
  int64_t num_rows() const { return end - begin; }
  int64_t cost() const { return num_rows() * (num_before + end - first_local); }
};

std::vector<Block> blocks_of(int64_t num_tokens, int64_t window, const Survivors* survivors, int64_t head) {
  std::vector<Block> blocks;
  const int64_t num_before_far = survivors != nullptr ? std::min(num_tokens, window + 1) : num_tokens;
  for (int64_t begin = 0; begin < num_before_far; begin += kCpuBlockRows) {
    blocks.push_back({begin, std::min(num_before_far, begin + kCpuBlockRows), 0, 0});
  }
  if (survivors != nullptr) {
    for (int64_t b = 0; b < survivors->num_blocks(); ++b) {
      const int64_t first = survivors->block_begin(b);
      blocks.push_back(
          {first + window + 1, survivors->block_end(b) + window + 1, first, survivors->num_before(head, b)});
    }
  }
  return blocks;
}

struct Task {
  int64_t cost, head, index;  // index: of a block or a stripe
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

// Keys or values of one KV head in the order in which tiles visit them.
struct Vectors {
  at::Tensor rows_Kd;     // padded with zeros to whole panels
  at::Tensor panels_PdK;  // the same, each panel transposed
};
struct Keys {
  int64_t count() const { return bias_K.defined() ? bias_K.size(0) - kTilePadding : 0; }
  Vectors k, v;
  at::Tensor bias_K;  // with room for a tile's padding
};

enum class Pass { forward, backward };

// One sequence as the tiles need it: contiguous, in the tiles' type.
class Problem {
 public:
  Problem(const AttentionTensors& in, int64_t window, const Survivors* survivors, double scale, Pass pass)
      : options(in.q_BHTd.options().dtype(in.q_BHTd.scalar_type() == at::kDouble ? at::kDouble : at::kFloat)),
        window(std::min(window, in.q_BHTd.size(2))),
        scale(scale),
        num_tokens(in.q_BHTd.size(2)),
        num_kv_heads(in.k_BGTd.size(1)),
        repeats(in.q_BHTd.size(1) / num_kv_heads),
        head_dim(in.q_BHTd.size(3)),
        q_GRTd(at::empty({num_kv_heads, repeats, num_tokens, head_dim}, options)),
        pass_(pass) {
    q_GRTd.copy_(in.q_BHTd.select(0, 0).unflatten(0, {num_kv_heads, repeats})).mul_(scale);
    for (int64_t g = 0; g < num_kv_heads; ++g) {
      const at::Tensor k_Td = in.k_BGTd.select(0, 0).select(0, g), v_Td = in.v_BGTd.select(0, 0).select(0, g);
      const at::Tensor bias_T =
          in.bias_BGT.defined() ? in.bias_BGT.select(0, 0).select(0, g) : at::zeros({num_tokens}, options);
      local.push_back(in_order(k_Td, v_Td, bias_T));
      if (survivors != nullptr) {
        const at::Tensor& keys = survivors->keys(g);
        gathered.push_back(
            in_order(k_Td.index_select(0, keys), v_Td.index_select(0, keys), bias_T.index_select(0, keys)));
      } else {
        gathered.push_back({});
      }
      blocks.push_back(blocks_of(num_tokens, window, survivors, g));
    }
  }

  // [1, H, ...] of any type -> [G, R, ...] of the tiles' type.
  at::Tensor grouped(const at::Tensor& x) const {
    return x.select(0, 0).to(options.dtype()).contiguous().unflatten(0, {num_kv_heads, repeats});
  }
  // [R * rows, ...]: a block's rows of a grouped tensor [G, R, T, ...], stacked.
  at::Tensor stacked(const at::Tensor& x_GRT, int64_t g, const Block& block) const {
    return x_GRT.select(0, g).slice(1, block.begin, block.end).flatten(0, 1).contiguous();
  }
  // Keys of a tile and the elements of one: as many keys as the block's rows leave room for.
  int64_t tile_keys() const {
    return std::max<int64_t>(1, kTileElements / (repeats * kCpuBlockRows) / kPanelKeys) * kPanelKeys;
  }
  int64_t tile_elements() const { return repeats * kCpuBlockRows * tile_keys(); }

  // Calls visit(keys, gathered?, first key, tile) for every tile of a block.
  template <class Visit>
  void for_tiles(int64_t g, const Block& block, const Visit& visit) const {
    const auto run = [&](bool is_gathered, int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += tile_keys()) {
        const int64_t width = std::min(tile_keys(), end - first);
        AttentionTile tile{repeats, block.num_rows(), width, tile_keys(), width, width};
        if (!is_gathered) {
          tile.first_visible = block.begin + 1 - first;
          tile.first_far = block.begin - window - first;
        }
        visit((is_gathered ? gathered : local)[static_cast<size_t>(g)], is_gathered, first, tile);
      }
    };
    run(true, 0, block.num_before);
    run(false, block.first_local, block.end);
  }

  at::TensorOptions options;
  int64_t window;
  double scale;
  int64_t num_tokens, num_kv_heads, repeats, head_dim;
  at::Tensor q_GRTd;                       // times the scale
  std::vector<Keys> local, gathered;       // per KV head
  std::vector<std::vector<Block>> blocks;  // per KV head

 private:
  // Forward, scores are products with the keys' panels and outputs with the values' rows; backward, gradients of
  // probabilities with the values' panels and those of queries with the keys' rows.
  Keys in_order(const at::Tensor& k_Kd, const at::Tensor& v_Kd, const at::Tensor& bias_K) const {
    const auto rows = [&](const at::Tensor& x_Kd) {
      const int64_t count = x_Kd.size(0), padding = (count + kPanelKeys - 1) / kPanelKeys * kPanelKeys - count;
      return at::constant_pad_nd(x_Kd.to(options.dtype()), {0, 0, 0, padding}, 0.0);
    };
    const auto panels = [&](const at::Tensor& rows_Kd) {
      return rows_Kd.unflatten(0, {-1, kPanelKeys}).transpose(1, 2).contiguous();
    };
    const at::Tensor k_rows = rows(k_Kd), v_rows = rows(v_Kd);
    const at::Tensor bias = at::constant_pad_nd(bias_K.to(options.dtype()), {0, kTilePadding}, 0.0);
    if (pass_ == Pass::forward) return {{{}, panels(k_rows)}, {v_rows, {}}, bias};
    return {{k_rows, panels(k_rows)}, {{}, panels(v_rows)}, bias};
  }

  Pass pass_;
};

// [rows, padded width] of a scratch tensor, rows tile.stride apart.
at::Tensor tile_view(const at::Tensor& scratch, const AttentionTile& tile) {
  return scratch.as_strided({tile.heads * tile.rows, tile.padded_width()}, {tile.stride, 1}, scratch.storage_offset());
}

// total_Nd += tile_NK times the vectors' rows from `first` on.  A kernel sums one summand after the other: in pieces of a
// few panels less is lost to rounding.
void add_product_of_rows(const at::Tensor& tile_NK, const Vectors& vectors, int64_t first, const at::Tensor& total_Nd) {
  constexpr int64_t kSummands = 2 * kPanelKeys;
  for (int64_t begin = 0; begin < tile_NK.size(1); begin += kSummands) {
    const int64_t end = std::min(begin + kSummands, tile_NK.size(1));
    multiply(tile_NK.slice(1, begin, end), vectors.rows_Kd.slice(0, first + begin, first + end), Product::adds,
             total_Nd);
  }
}

// tile_NK = x_Nd times the vectors from `first` on, the beginning of a panel.
void multiply_panels(const at::Tensor& x_Nd, const Vectors& vectors, int64_t first, const at::Tensor& tile_NK) {
  for (int64_t begin = 0; begin < tile_NK.size(1); begin += kPanelKeys) {
    const int64_t width = std::min(kPanelKeys, tile_NK.size(1) - begin);
    multiply(x_Nd, vectors.panels_PdK.select(0, (first + begin) / kPanelKeys).slice(1, 0, width), Product::replaces,
             tile_NK.slice(1, begin, begin + width));
  }
}

template <class Real>
void forward_block(const Problem& p, int64_t g, const Block& block, const at::Tensor& out_GRTd,
                   const at::Tensor& lse_GRT) {
  const int64_t num_rows = p.repeats * block.num_rows();
  const at::Tensor q_Nd = p.stacked(p.q_GRTd, g, block);
  const at::Tensor out_Nd = at::zeros_like(q_Nd);
  const at::Tensor max_N = at::full({num_rows}, -std::numeric_limits<Real>::infinity(), p.options);
  const at::Tensor sum_N = at::zeros({num_rows}, p.options);
  const at::Tensor scratch = at::empty({p.tile_elements()}, p.options);
  p.for_tiles(g, block, [&](const Keys& keys, bool, int64_t first, const AttentionTile& tile) {
    const at::Tensor score_NK = tile_view(scratch, tile);
    multiply_panels(q_Nd, keys.k, first, score_NK);
    softmax_tile<Real>(tile, keys.bias_K.const_data_ptr<Real>() + first, scratch.mutable_data_ptr<Real>(),
                       max_N.mutable_data_ptr<Real>(), sum_N.mutable_data_ptr<Real>(), out_Nd.mutable_data_ptr<Real>(),
                       p.head_dim);
    add_product_of_rows(score_NK, keys.v, first, out_Nd);
  });
  const auto place = [&](const at::Tensor& result_GRT, const at::Tensor& rows_N) {
    result_GRT.select(0, g).slice(1, block.begin, block.end).copy_(rows_N.unflatten(0, {p.repeats, block.num_rows()}));
  };
  place(out_GRTd, out_Nd.div_(sum_N.unsqueeze(1)));
  place(lse_GRT, max_N.add_(sum_N.log_()));
}

struct KeyGradients {
  KeyGradients(int64_t num_keys, int64_t head_dim, const at::TensorOptions& options)
      : dk_Kd(at::zeros({num_keys, head_dim}, options)),
        dv_Kd(at::zeros({num_keys, head_dim}, options)),
        dbias_K(at::zeros({num_keys}, options)) {}
  void add(const KeyGradients& other) {
    dk_Kd.add_(other.dk_Kd);
    dv_Kd.add_(other.dv_Kd);
    dbias_K.add_(other.dbias_K);
  }
  at::Tensor dk_Kd, dv_Kd, dbias_K;
};

// What one stripe of blocks adds up.
struct StripeGradients {
  StripeGradients(const Problem& p, int64_t g)
      : local(p.num_tokens, p.head_dim, p.options),
        gathered(p.gathered[static_cast<size_t>(g)].count(), p.head_dim, p.options) {}
  KeyGradients local, gathered;
};

// Tensors [G, R, T, ...] of the backward pass.
struct BackwardRows {
  at::Tensor dout_GRTd, delta_GRT, lse_GRT, dq_GRTd;
};

template <class Real>
void backward_block(const Problem& p, int64_t g, const Block& block, const BackwardRows& all, const at::Tensor& scratch,
                    StripeGradients& total) {
  const at::Tensor q_Nd = p.stacked(p.q_GRTd, g, block), dout_Nd = p.stacked(all.dout_GRTd, g, block);
  const at::Tensor lse_N = p.stacked(all.lse_GRT, g, block), delta_N = p.stacked(all.delta_GRT, g, block);
  const at::Tensor dq_Nd = at::zeros_like(q_Nd), dbias_K = at::empty({p.tile_keys()}, p.options);
  p.for_tiles(g, block, [&](const Keys& keys, bool is_gathered, int64_t first, const AttentionTile& tile) {
    KeyGradients& of_keys = is_gathered ? total.gathered : total.local;
    const at::Tensor p_NK = tile_view(scratch.select(0, 0), tile), ds_NK = tile_view(scratch.select(0, 1), tile);
    multiply_panels(q_Nd, keys.k, first, p_NK);
    multiply_panels(dout_Nd, keys.v, first, ds_NK);
    // Sums of a tile first: one running sum over all rows would lose more to rounding than everything else here.
    dbias_K.zero_();
    gradient_tile<Real>(tile, keys.bias_K.const_data_ptr<Real>() + first, lse_N.const_data_ptr<Real>(),
                        delta_N.const_data_ptr<Real>(), p_NK.mutable_data_ptr<Real>(), ds_NK.mutable_data_ptr<Real>(),
                        dbias_K.mutable_data_ptr<Real>());
    of_keys.dbias_K.slice(0, first, first + tile.width).add_(dbias_K.slice(0, 0, tile.width));
    // A transposed factor: the library packs it.
    const auto add_to = [&](const at::Tensor& gradient_Kd, const at::Tensor& tile_NK, const at::Tensor& x_Nd) {
      gradient_Kd.slice(0, first, first + tile.width).addmm_(tile_NK.slice(1, 0, tile.width).t(), x_Nd);
    };
    add_to(of_keys.dv_Kd, p_NK, dout_Nd);
    add_to(of_keys.dk_Kd, ds_NK, q_Nd);
    add_product_of_rows(ds_NK, keys.k, first, dq_Nd);
  });
  all.dq_GRTd.select(0, g)
      .slice(1, block.begin, block.end)
      .copy_(dq_Nd.mul_(p.scale).unflatten(0, {p.repeats, block.num_rows()}));
}

template <class Run>
auto for_real(at::ScalarType dtype, const Run& run) {
  return dtype == at::kDouble ? run(double{}) : run(float{});
}

}  // namespace

FlashOutput cpu_tiled_attention(const AttentionTensors& in, int64_t window, const Survivors* survivors, double scale) {
  const Problem p(in, window, survivors, scale, Pass::forward);
  const at::Tensor out_GRTd = at::empty_like(p.q_GRTd);
  const at::Tensor lse_GRT = at::empty({p.num_kv_heads, p.repeats, p.num_tokens}, p.options);
  std::vector<Task> tasks;
  for (int64_t g = 0; g < p.num_kv_heads; ++g) {
    const std::vector<Block>& blocks = p.blocks[static_cast<size_t>(g)];
    for (size_t b = 0; b < blocks.size(); ++b) tasks.push_back({blocks[b].cost(), g, static_cast<int64_t>(b)});
  }
  run_by_cost(std::move(tasks), [&](int64_t g, int64_t b) {
    const Block& block = p.blocks[static_cast<size_t>(g)][static_cast<size_t>(b)];
    for_real(p.options.dtype().toScalarType(),
             [&](auto real) { forward_block<decltype(real)>(p, g, block, out_GRTd, lse_GRT); });
  });
  return {out_GRTd.flatten(0, 1).unsqueeze(0).to(in.q_BHTd.scalar_type()), lse_GRT.flatten(0, 1).unsqueeze(0)};
}

AttentionGradients cpu_tiled_attention_backward(const at::Tensor& dout_BHTd, const AttentionTensors& in,
                                                const FlashOutput& merged, int64_t window, const Survivors* survivors,
                                                double scale) {
  const Problem p(in, window, survivors, scale, Pass::backward);
  BackwardRows rows{p.grouped(dout_BHTd), {}, p.grouped(merged.lse_BHT), at::empty_like(p.q_GRTd)};
  rows.delta_GRT = at::sum(rows.dout_GRTd * p.grouped(merged.out_BHTd), -1);

  // Made here, not by the tasks: of memory that other threads free, malloc gives more back to the system.
  std::vector<StripeGradients> stripes;
  std::vector<Task> tasks;
  for (int64_t g = 0; g < p.num_kv_heads; ++g) {
    for (int64_t stripe = 0; stripe < kStripes; ++stripe) {
      stripes.emplace_back(p, g);
      tasks.push_back({1, g, stripe});
    }
  }
  run_by_cost(tasks, [&](int64_t g, int64_t stripe) {
    const at::Tensor scratch = at::empty({2, p.tile_elements()}, p.options);
    StripeGradients& total = stripes[static_cast<size_t>(g * kStripes + stripe)];
    const std::vector<Block>& blocks = p.blocks[static_cast<size_t>(g)];
    for (size_t b = static_cast<size_t>(stripe); b < blocks.size(); b += kStripes) {
      for_real(p.options.dtype().toScalarType(),
               [&](auto real) { backward_block<decltype(real)>(p, g, blocks[b], rows, scratch, total); });
    }
  });

  AttentionGradients result{rows.dq_GRTd.flatten(0, 1).unsqueeze(0).to(in.q_BHTd.scalar_type()),
                            at::empty_like(in.k_BGTd), at::empty_like(in.v_BGTd), at::Tensor()};
  if (in.bias_BGT.defined()) result.dbias_BGT = at::empty_like(in.bias_BGT);
  std::vector<Task> heads;
  for (int64_t g = 0; g < p.num_kv_heads; ++g) heads.push_back({1, g, 0});
  run_by_cost(heads, [&](int64_t g, int64_t) {
    StripeGradients& total = stripes[static_cast<size_t>(g * kStripes)];
    for (int64_t stripe = 1; stripe < kStripes; ++stripe) {
      const StripeGradients& part = stripes[static_cast<size_t>(g * kStripes + stripe)];
      total.local.add(part.local);
      total.gathered.add(part.gathered);
    }
    if (survivors != nullptr) {
      const at::Tensor& keys = survivors->keys(g);
      total.local.dk_Kd.index_add_(0, keys, total.gathered.dk_Kd);
      total.local.dv_Kd.index_add_(0, keys, total.gathered.dv_Kd);
      total.local.dbias_K.index_add_(0, keys, total.gathered.dbias_K);
    }
    const auto place = [&](const at::Tensor& result_BGT, const at::Tensor& of_head) {
      result_BGT.select(0, 0).select(0, g).copy_(of_head.slice(0, 0, p.num_tokens));
    };
    place(result.dk_BGTd, total.local.dk_Kd);
    place(result.dv_BGTd, total.local.dv_Kd);
    if (result.dbias_BGT.defined()) place(result.dbias_BGT, total.local.dbias_K);
  });
  return result;
}

}  // namespace dms
