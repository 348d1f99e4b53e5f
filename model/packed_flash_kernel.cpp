#include "model/packed_flash_kernel.h"

#include <ATen/OpMathType.h>

#include "model/far_square.h"

namespace dms {

namespace {

// Staged through pinned memory, so that the host does not wait for the copy.
at::Tensor on_device(const at::Tensor& x, at::Device device) {
  return device.is_cuda() ? x.pin_memory().to(device, /*non_blocking=*/true) : x;
}

// [1, heads, n * rows, ...] <-> [n, heads, rows, ...]
at::Tensor to_blocks(const at::Tensor& x, int64_t rows) {
  return x.squeeze(0).unflatten(1, {-1, rows}).transpose(0, 1);
}
at::Tensor from_blocks(const at::Tensor& x) { return x.transpose(0, 1).flatten(1, 2).unsqueeze(0); }

// Runs `compute(slices, block_rows)` on the full blocks as a batch and on the shorter last block, and joins each of the
// tensors that it returns.  `inputs`: [1, heads, rows, ...] each.
template <class Compute>
std::vector<at::Tensor> for_squares(const std::vector<at::Tensor>& inputs, int64_t block_rows, const Compute& compute) {
  const int64_t num_rows = inputs[0].size(2), num_full = num_rows / block_rows * block_rows;
  std::vector<std::vector<at::Tensor>> results;
  if (num_full > 0) {
    std::vector<at::Tensor> blocks;
    for (const at::Tensor& x : inputs) blocks.push_back(to_blocks(x.slice(2, 0, num_full), block_rows));
    std::vector<at::Tensor> outputs = compute(blocks);
    for (at::Tensor& x : outputs) x = from_blocks(x);
    results.push_back(std::move(outputs));
  }
  if (num_full < num_rows) {
    std::vector<at::Tensor> last;
    for (const at::Tensor& x : inputs) last.push_back(x.slice(2, num_full));
    results.push_back(compute(last));
  }
  if (results.size() == 1) return results[0];
  std::vector<at::Tensor> joined;
  for (size_t i = 0; i < results[0].size(); ++i) joined.push_back(at::cat({results[0][i], results[1][i]}, 2));
  return joined;
}

// Which rows of which heads have rectangles, and the layout of the packed tensors.  Of a KV head, the rows from the
// first block with a survivor before it to the last row, as [rows, R].
class Packing {
 public:
  Packing(const AttentionTensors& in, const Survivors& survivors, const FarSquare& square) : survivors_(survivors) {
    const int64_t num_heads = survivors.num_heads();
    repeats_ = in.q_BHTd.size(1) / num_heads;
    std::vector<at::Tensor> keys, values;
    int64_t num_rows = 0, num_keys = 0;
    for (int64_t g = 0; g < num_heads; ++g) {
      positions_.push_back(on_device(survivors.keys(g), in.q_BHTd.device()));
      const at::Tensor head_k = square.k.select(0, 0).select(0, g).index_select(0, positions_.back());
      const at::Tensor head_v = square.v.select(0, 0).select(0, g).index_select(0, positions_.back());
      int64_t first_row = survivors.num_rows();
      for (int64_t block = survivors.num_blocks() - 1; block >= 0 && survivors.num_before(g, block) > 0; --block) {
        first_row = survivors.block_begin(block);
      }
      first_row_.push_back(first_row);
      for (int64_t block = 0; block < survivors.num_blocks(); ++block) {
        if (survivors.block_begin(block) < first_row) continue;
        const int64_t before = survivors.num_before(g, block);
        keys.push_back(head_k.slice(0, 0, before));
        values.push_back(head_v.slice(0, 0, before));
        packed.row_ends.push_back(num_rows += repeats_ * (survivors.block_end(block) - survivors.block_begin(block)));
        packed.key_ends.push_back(num_keys += before);
      }
    }
    if (empty()) return;
    packed.q_Nd = rows_of(square.q);
    packed.k_Md = at::cat(keys, 0);
    packed.v_Md = at::cat(values, 0);
  }

  bool empty() const { return packed.row_ends.empty(); }

  // x [1, H, rows, ...] of the far square <-> packed [N, ...].
  at::Tensor rows_of(const at::Tensor& x) const {
    std::vector<at::Tensor> parts;
    for (int64_t g = 0; g < survivors_.num_heads(); ++g) parts.push_back(rows(x, g).transpose(0, 1).flatten(0, 1));
    return at::cat(parts, 0);
  }
  // Calls visit(view of x [R, rows, ...], the same of y, ...) for every head's part of packed_N, as [R, rows, ...].
  template <class Visit>
  void for_heads(const at::Tensor& packed_N, const Visit& visit) const {
    int64_t begin = 0;
    for (int64_t g = 0; g < survivors_.num_heads(); ++g) {
      const int64_t num_rows = survivors_.num_rows() - first_row_[static_cast<size_t>(g)];
      if (num_rows == 0) continue;
      const int64_t end = begin + num_rows * repeats_;
      visit(g, packed_N.slice(0, begin, end).unflatten(0, {num_rows, repeats_}).transpose(0, 1));
      begin = end;
    }
  }
  at::Tensor rows(const at::Tensor& x, int64_t g) const {
    return x.select(0, 0).slice(0, g * repeats_, (g + 1) * repeats_).slice(1, first_row_[static_cast<size_t>(g)]);
  }

  // Sums the packed keys' gradients [M, d] of each head's blocks and adds them to total [1, G, keys, d].
  void add_keys(const at::Tensor& packed_Md, const at::Tensor& total) const {
    size_t rectangle = 0;
    int64_t begin = 0;
    for (int64_t g = 0; g < survivors_.num_heads(); ++g) {
      if (first_row_[static_cast<size_t>(g)] == survivors_.num_rows()) continue;
      at::Tensor sum = at::zeros({survivors_.num_keys(g), packed_Md.size(1)},
                                 packed_Md.options().dtype(at::toOpMathType(packed_Md.scalar_type())));
      for (int64_t block = 0; block < survivors_.num_blocks(); ++block) {
        if (survivors_.block_begin(block) < first_row_[static_cast<size_t>(g)]) continue;
        const int64_t end = packed.key_ends[rectangle++];
        sum.slice(0, 0, end - begin).add_(packed_Md.slice(0, begin, end));
        begin = end;
      }
      total.select(0, 0).select(0, g).index_add_(0, positions_[static_cast<size_t>(g)], sum.to(total.scalar_type()));
    }
  }

  Rectangles packed;

 private:
  const Survivors& survivors_;
  int64_t repeats_ = 1;
  std::vector<int64_t> first_row_;     // per KV head
  std::vector<at::Tensor> positions_;  // of survivors, per KV head, on the device
};

}  // namespace

FlashOutput PackedFlashKernel::dense(const AttentionTensors& in, int64_t window, double scale) const {
  FlashOutput result = banded(in.q_BHTd, in.k_BGTd, in.v_BGTd, window, scale);
  if (in.q_BHTd.size(2) > window + 1) {
    const FarSquare far = make_far_square(in, window, scale);
    const FlashOutput part = causal(far.q, far.k, far.v, scale);
    merge(result.out_BHTd.slice(2, window + 1), result.lse_BHT.slice(2, window + 1),
          part.out_BHTd.slice(3, 0, in.q_BHTd.size(3)), part.lse_BHT);
  }
  return result;
}

AttentionGradients PackedFlashKernel::dense_backward(const at::Tensor& dout, const AttentionTensors& in,
                                                     const FlashOutput& merged, int64_t window, double scale) const {
  const int64_t num_tokens = in.q_BHTd.size(2), head_dim = in.q_BHTd.size(3);
  FlashGradients near = banded_backward(dout, in.q_BHTd, in.k_BGTd, in.v_BGTd, merged, window, scale);
  AttentionGradients total{near.dq_BHTd, near.dk_BGTd, near.dv_BGTd, at::zeros_like(in.bias_BGT)};
  if (num_tokens > window + 1) {
    const int64_t first = window + 1, size = num_tokens - first;
    const int64_t columns = num_bias_columns(in.q_BHTd.scalar_type());
    const FarSquare square = make_far_square(in, window, scale);
    const FlashOutput rows{append_zero_columns(merged.out_BHTd.slice(2, first), columns),
                           merged.lse_BHT.slice(2, first)};
    const FlashGradients far =
        causal_backward(append_zero_columns(dout.slice(2, first), columns), square.q, square.k, square.v, rows, scale);
    total.dq_BHTd.slice(2, first).add_(far.dq_BHTd.slice(3, 0, head_dim));
    total.dk_BGTd.slice(2, 0, size).add_(far.dk_BGTd.slice(3, 0, head_dim));
    total.dv_BGTd.slice(2, 0, size).add_(far.dv_BGTd.slice(3, 0, head_dim));
    total.dbias_BGT.slice(2, 0, size).copy_(bias_gradient(far.dk_BGTd, head_dim, scale, in.bias_BGT.scalar_type()));
  }
  return total;
}

FlashOutput PackedFlashKernel::sparse(const AttentionTensors& in, const Survivors& survivors, double scale) const {
  const int64_t head_dim = in.q_BHTd.size(3), first = survivors.window() + 1;
  FlashOutput result = banded(in.q_BHTd, in.k_BGTd, in.v_BGTd, survivors.window(), scale);
  const at::Tensor far_out = result.out_BHTd.slice(2, first), far_lse = result.lse_BHT.slice(2, first);

  const FarSquare square = make_far_square(in, survivors.window(), scale);
  const auto squares =
      for_squares({square.q, square.k, square.v}, survivors.block_end(0), [&](const std::vector<at::Tensor>& x) {
        FlashOutput part = causal(x[0], x[1], x[2], scale);
        return std::vector<at::Tensor>{part.out_BHTd, part.lse_BHT};
      });
  merge(far_out, far_lse, squares[0].slice(3, 0, head_dim), squares[1]);

  const Packing packing(in, survivors, square);
  if (packing.empty()) return result;
  const RowOutput part = rectangles(packing.packed, scale);
  std::vector<at::Tensor> lse_of_head(static_cast<size_t>(survivors.num_heads()));
  packing.for_heads(part.lse_N, [&](int64_t g, const at::Tensor& lse) { lse_of_head[static_cast<size_t>(g)] = lse; });
  packing.for_heads(part.out_Nd, [&](int64_t g, const at::Tensor& out) {
    merge(packing.rows(far_out, g), packing.rows(far_lse, g), out.slice(2, 0, head_dim),
          lse_of_head[static_cast<size_t>(g)]);
  });
  return result;
}

AttentionGradients PackedFlashKernel::sparse_backward(const at::Tensor& dout, const AttentionTensors& in,
                                                      const FlashOutput& merged, const Survivors& survivors,
                                                      double scale) const {
  const int64_t head_dim = in.q_BHTd.size(3), first = survivors.window() + 1, num_rows = survivors.num_rows();
  const int64_t columns = num_bias_columns(in.q_BHTd.scalar_type());
  FlashGradients near = banded_backward(dout, in.q_BHTd, in.k_BGTd, in.v_BGTd, merged, survivors.window(), scale);
  AttentionGradients total{near.dq_BHTd, near.dk_BGTd, near.dv_BGTd, at::zeros_like(in.bias_BGT)};

  const FarSquare square = make_far_square(in, survivors.window(), scale);
  const at::Tensor far_dout = append_zero_columns(dout.slice(2, first), columns);
  const at::Tensor far_out = append_zero_columns(merged.out_BHTd.slice(2, first), columns);
  const at::Tensor far_lse = merged.lse_BHT.slice(2, first);
  std::vector<at::Tensor> far =
      for_squares({far_dout, square.q, square.k, square.v, far_out, far_lse}, survivors.block_end(0),
                  [&](const std::vector<at::Tensor>& x) {
                    FlashGradients part = causal_backward(x[0], x[1], x[2], x[3], {x[4], x[5]}, scale);
                    return std::vector<at::Tensor>{part.dq_BHTd, part.dk_BGTd, part.dv_BGTd};
                  });

  const Packing packing(in, survivors, square);
  if (!packing.empty()) {
    const PackedGradients part = rectangles_backward(packing.rows_of(far_dout), packing.packed,
                                                     {packing.rows_of(far_out), packing.rows_of(far_lse)}, scale);
    packing.for_heads(part.dq_Nd, [&](int64_t g, const at::Tensor& dq) { packing.rows(far[0], g).add_(dq); });
    packing.add_keys(part.dk_Md, far[1]);
    packing.add_keys(part.dv_Md, far[2]);
  }
  total.dq_BHTd.slice(2, first).add_(far[0].slice(3, 0, head_dim));
  total.dk_BGTd.slice(2, 0, num_rows).add_(far[1].slice(3, 0, head_dim));
  total.dv_BGTd.slice(2, 0, num_rows).add_(far[2].slice(3, 0, head_dim));
  total.dbias_BGT.slice(2, 0, num_rows).copy_(bias_gradient(far[1], head_dim, scale, in.bias_BGT.scalar_type()));
  return total;
}

}  // namespace dms
