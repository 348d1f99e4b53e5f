// Attention from a library's kernels, on the CPU: packing, unpacking and merging are judged here.  The causal op is
// LibTorch's CPU one, which has no window, so the band runs in blocks under a mask; the packed op is a plain loop.  A GPU's
// ops are judged there (attention_test.cpp).
#include "model/packed_flash_kernel.h"

#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "model/attention_reference.h"
#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

constexpr int64_t kBlockRows = 32;

struct Band {
  int64_t begin, end, first_key;  // queries [begin, end) see keys [first_key, end)
};

template <class Visit>
void for_each_band(int64_t num_tokens, int64_t window, const Visit& visit) {
  constexpr int64_t kBandRows = 64;
  for (int64_t begin = 0; begin < num_tokens; begin += kBandRows) {
    visit(Band{begin, std::min(num_tokens, begin + kBandRows), std::max<int64_t>(0, begin - window)});
  }
}

at::Tensor band_mask(const Band& band, int64_t window, const at::TensorOptions& options) {
  const auto long_options = options.dtype(at::kLong);
  const at::Tensor q = at::arange(band.begin, band.end, long_options).unsqueeze(1);
  const at::Tensor k = at::arange(band.first_key, band.end, long_options).unsqueeze(0);
  const at::Tensor hidden = at::logical_or(k > q, (q - k) > window);
  return at::zeros({band.end - band.begin, band.end - band.first_key}, options)
      .masked_fill_(hidden, -std::numeric_limits<double>::infinity());
}

class LoopKernel final : public PackedFlashKernel {
 public:
  FlashOutput causal(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) const override {
    auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, true, {}, scale);
    return {out, lse};
  }
  int64_t sparse_block_rows() const override { return kBlockRows; }

  mutable int num_packed_calls = 0;

 protected:
  FlashGradients causal_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const FlashOutput& merged, double scale) const override {
    auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(dout, q, k, v, merged.out_BHTd,
                                                                                 merged.lse_BHT, 0.0, true, {}, scale);
    return {dq, dk, dv};
  }

  FlashOutput banded(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window,
                     double scale) const override {
    const int64_t num_tokens = q.size(2);
    if (window + 1 >= num_tokens) return causal(q, k, v, scale);
    FlashOutput result;
    std::vector<at::Tensor> outs, lses;
    for_each_band(num_tokens, window, [&](const Band& band) {
      auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(
          q.slice(2, band.begin, band.end), k.slice(2, band.first_key, band.end), v.slice(2, band.first_key, band.end),
          0.0, false, band_mask(band, window, q.options()), scale);
      outs.push_back(out);
      lses.push_back(lse);
    });
    return {at::cat(outs, 2), at::cat(lses, 2)};
  }

  FlashGradients banded_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const FlashOutput& merged, int64_t window, double scale) const override {
    const int64_t num_tokens = q.size(2);
    if (window + 1 >= num_tokens) return causal_backward(dout, q, k, v, merged, scale);
    FlashGradients total{at::empty_like(q), at::zeros_like(k), at::zeros_like(v)};
    for_each_band(num_tokens, window, [&](const Band& band) {
      auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
          dout.slice(2, band.begin, band.end), q.slice(2, band.begin, band.end), k.slice(2, band.first_key, band.end),
          v.slice(2, band.first_key, band.end), merged.out_BHTd.slice(2, band.begin, band.end),
          merged.lse_BHT.slice(2, band.begin, band.end), 0.0, false, band_mask(band, window, q.options()), scale);
      total.dq_BHTd.slice(2, band.begin, band.end).copy_(dq);
      total.dk_BGTd.slice(2, band.first_key, band.end).add_(dk);
      total.dv_BGTd.slice(2, band.first_key, band.end).add_(dv);
    });
    return total;
  }

  RowOutput rectangles(const Rectangles& r, double scale) const override {
    ++num_packed_calls;
    RowOutput result{at::empty_like(r.q_Nd), at::empty({r.q_Nd.size(0)}, r.q_Nd.options())};
    for_groups(r, [&](auto rows, auto keys) {
      const at::Tensor score = at::matmul(rows(r.q_Nd), keys(r.k_Md).t()) * scale;
      rows(result.lse_N).copy_(at::logsumexp(score, {1}));
      rows(result.out_Nd).copy_(at::matmul(at::softmax(score, 1), keys(r.v_Md)));
    });
    return result;
  }

  PackedGradients rectangles_backward(const at::Tensor& dout_Nd, const Rectangles& r, const RowOutput& merged,
                                      double scale) const override {
    PackedGradients result{at::empty_like(r.q_Nd), at::empty_like(r.k_Md), at::empty_like(r.v_Md)};
    for_groups(r, [&](auto rows, auto keys) {
      const at::Tensor p =
          at::exp(at::matmul(rows(r.q_Nd), keys(r.k_Md).t()) * scale - rows(merged.lse_N).unsqueeze(1));
      const at::Tensor delta = (rows(dout_Nd) * rows(merged.out_Nd)).sum(1, true);
      const at::Tensor ds = p * (at::matmul(rows(dout_Nd), keys(r.v_Md).t()) - delta);
      rows(result.dq_Nd).copy_(at::matmul(ds, keys(r.k_Md)) * scale);
      keys(result.dk_Md).copy_(at::matmul(ds.t(), rows(r.q_Nd)) * scale);
      keys(result.dv_Md).copy_(at::matmul(p.t(), rows(dout_Nd)));
    });
    return result;
  }

 private:
  template <class Visit>
  static void for_groups(const Rectangles& r, const Visit& visit) {
    int64_t row = 0, key = 0;
    for (size_t i = 0; i < r.row_ends.size(); ++i) {
      const int64_t row_end = r.row_ends[i], key_end = r.key_ends[i];
      ASSERT_LT(row, row_end);
      ASSERT_LT(key, key_end);
      visit([=](const at::Tensor& x) { return x.slice(0, row, row_end); },
            [=](const at::Tensor& x) { return x.slice(0, key, key_end); });
      row = row_end;
      key = key_end;
    }
    EXPECT_EQ(row, r.q_Nd.size(0));
    EXPECT_EQ(key, r.k_Md.size(0));
  }
};

struct Case {
  int64_t T, window, G, R;
};

// Head 0 keeps all, head 1 nothing, the others some: soft keys, kept keys and a first block without any survivor.
at::Tensor ragged_bias(const Case& c) {
  at::Tensor bias = at::full({1, c.G, c.T}, kGoneBias, at::kDouble);
  bias.select(1, 0).zero_();
  if (c.G > 2) bias.slice(1, 2).slice(2, kBlockRows + 5, c.T, 3).fill_(-1.5);
  if (c.G > 2) bias.slice(1, 2).slice(2, kBlockRows + 6, c.T, 9).zero_();
  return bias;
}

TEST(PackedFlashKernel, IsExact) {
  for (const Case& c : {Case{200, 16, 3, 3}, Case{16 + 1 + 2 * kBlockRows, 16, 3, 1}, Case{50, 16, 2, 4},
                        Case{18, 16, 3, 2}, Case{150, 0, 4, 2}}) {
    SCOPED_TRACE(::testing::Message() << "T " << c.T << " window " << c.window << " G " << c.G << " R " << c.R);
    constexpr int64_t d = 8;
    const auto leaf = [](const at::Tensor& x) { return x.clone().set_requires_grad(true); };
    const AttentionTensors in{leaf(seeded_normal({1, c.G * c.R, c.T, d}, 1)), leaf(seeded_normal({1, c.G, c.T, d}, 2)),
                              leaf(seeded_normal({1, c.G, c.T, d}, 3)), leaf(ragged_bias(c))};
    const at::Tensor dout = seeded_normal({1, c.G * c.R, c.T, d}, 4);
    const at::Tensor expected =
        dense_delayed_eviction_attention(in.q_BHTd, in.k_BGTd, in.v_BGTd, in.bias_BGT, c.window, {0, c.T});
    const auto expected_gradients =
        torch::autograd::grad({expected}, {in.q_BHTd, in.k_BGTd, in.v_BGTd, in.bias_BGT}, {dout});

    const at::NoGradGuard no_grad;
    const LoopKernel kernel;
    const double scale = 1.0 / std::sqrt(static_cast<double>(d));
    const auto expect_exact = [&](const FlashOutput& output, const AttentionGradients& gradients) {
      EXPECT_TRUE(is_near(output.out_BHTd, expected, 1e-12));
      EXPECT_TRUE(is_near(gradients.dq_BHTd, expected_gradients[0], 1e-12));
      EXPECT_TRUE(is_near(gradients.dk_BGTd, expected_gradients[1], 1e-12));
      EXPECT_TRUE(is_near(gradients.dv_BGTd, expected_gradients[2], 1e-12));
      EXPECT_TRUE(is_near(gradients.dbias_BGT, expected_gradients[3], 1e-12));
    };
    const FlashOutput dense = kernel.dense(in, c.window, scale);
    expect_exact(dense, kernel.dense_backward(dout, in, dense, c.window, scale));

    const Survivors survivors(gone_keys(in.bias_BGT).select(0, 0), c.window, kernel.sparse_block_rows());
    const FlashOutput output = kernel.sparse(in, survivors, scale);
    expect_exact(output, kernel.sparse_backward(dout, in, output, survivors, scale));
    EXPECT_LE(kernel.num_packed_calls, 1);
    EXPECT_EQ(kernel.num_packed_calls, c.T > c.window + 1 + kBlockRows ? 1 : 0);
  }
}

TEST(Survivors, ArePositionsAndCountsOfWhatIsNotGone) {
  // Two heads of 12 tokens, window 3: rows 0..7 of the far part, blocks of 3.
  at::Tensor gone_GT = at::ones({2, 12}, at::kBool);
  for (int64_t key : {0, 2, 3, 7, 8, 11}) gone_GT[0][key] = false;  // 8 and 11 are never far
  const Survivors survivors(gone_GT, 3, 3);
  EXPECT_EQ(survivors.num_rows(), 8);
  EXPECT_EQ(survivors.num_blocks(), 3);
  EXPECT_EQ(survivors.block_end(2), 8);
  ASSERT_EQ(survivors.num_keys(0), 4);
  EXPECT_EQ(survivors.keys(0)[3].item<int64_t>(), 7);
  EXPECT_EQ(survivors.num_keys(1), 0);
  const std::vector<int64_t> before{0, 2, 3};
  for (int64_t block = 0; block < 3; ++block) {
    EXPECT_EQ(survivors.num_before(0, block), before[static_cast<size_t>(block)]);
    EXPECT_EQ(survivors.num_before(1, block), 0);
  }
  // Rows 3, 3 and 2: local keys 7, 7 and 6 a head, survivors 0, 2 and 3 of head 0.
  EXPECT_EQ(survivors.sparse_pairs(), 3 * (2 * 7) + 3 * (2 * 7 + 2) + 2 * (2 * 6 + 3));
  EXPECT_EQ(survivors.dense_pairs(), 2 * (8 * 4 + 36));
}

}  // namespace
}  // namespace dms
