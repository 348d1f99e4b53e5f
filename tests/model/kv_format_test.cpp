#include "model/kv_format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "model/decode_attention.h"
#include "model/kv_pool.h"
#include "tests/support/tensor_comparison.h"

namespace dms {
namespace {

// Random rows of very different sizes, one of zeros, and one with a single large element.
at::Tensor rows() {
  at::Tensor x = seeded_normal({40, 64}, 1) * at::exp(4.0 * seeded_normal({40, 1}, 2));
  x[7].fill_(0.0);
  x[8][3] = 1e6;
  return x.to(at::kFloat).to(at::kDouble);
}

TEST(KvFormat, Int8IsWithinHalfAStepOfEveryElement) {
  const at::Tensor x = rows();
  const StoredRows stored = to_stored(x, at::kChar);
  const at::Tensor step = at::amax(at::abs(x), {-1}, true) / 127.0;
  const at::Tensor error = at::abs(from_stored(stored, at::kDouble) - x);
  EXPECT_TRUE(at::all(error <= step * (0.5 + 1e-4)).item<bool>());
  EXPECT_GT(at::amax(error / step.clamp_min(1e-12)).item<double>(), 0.45) << "better than the format can be";
  EXPECT_EQ(stored.rows[7].count_nonzero().item<int64_t>(), 0);
}

TEST(KvFormat, Float8IsWithinASixteenthOfEveryElement) {
  const at::Tensor x = rows();
  const StoredRows stored = to_stored(x, at::kFloat8_e4m3fn);
  const at::Tensor scale = at::amax(at::abs(x), {-1}, true) / 448.0;
  const at::Tensor error = at::abs(from_stored(stored, at::kDouble) - x);
  const at::Tensor bound = at::maximum(at::abs(x) / 16.0, scale / 1024.0) * (1.0 + 1e-4);
  EXPECT_TRUE(at::all(error <= bound).item<bool>());
  EXPECT_GT(at::amax(error / at::abs(x).clamp_min(1e-30)).item<double>(), 0.05) << "better than the format can be";
}

// Every value of the format through the kernel: one row, so that attention returns the value itself.
TEST(KvFormat, TheKernelReadsEveryFloat8ValueAsThePublishedTableDoes) {
  const at::Tensor bits = at::arange(256, at::kInt).to(at::kByte);
  const at::Tensor values = bits.view(at::kFloat8_e4m3fn);
  const at::Tensor q = at::zeros({1, 256}, at::kFloat), out = at::empty_like(q);
  KvPool pool(256, at::TensorOptions().dtype(at::kFloat8_e4m3fn), tight_layout(at::kCPU));
  const KvRow page = pool.take();
  const at::Tensor one = at::ones({1}, at::kFloat);
  pool.write_row(page, {at::zeros_like(values), one}, {values, one}, 0);
  decode_attention({{q.const_data_ptr<float>(), &page, 1, out.data_ptr<float>()}}, 1, 256, at::kFloat8_e4m3fn, 1.0F);
  for (int i = 0; i < 256; ++i) {
    const int exponent = (i >> 3) & 15, mantissa = i & 7;
    if (exponent == 15 && mantissa == 7) continue;  // NaN, never stored
    const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    EXPECT_EQ(out[0][i].item<double>(), i < 128 ? magnitude : -magnitude) << i;
  }
}

TEST(KvFormat, CountsTheBytesOfARow) {
  EXPECT_EQ(stored_row_bytes(64, at::kFloat), 256);
  EXPECT_EQ(stored_row_bytes(64, at::kBFloat16), 128);
  EXPECT_EQ(stored_row_bytes(64, at::kChar), 68);
  EXPECT_EQ(stored_row_bytes(64, at::kFloat8_e4m3fn), 68);
}

}  // namespace
}  // namespace dms
