#include "model/noise.h"

#include <ATen/core/PhiloxRNGEngine.h>

#include <cmath>

namespace dms {

at::Tensor logistic_noise_GT(uint64_t seed, int64_t step, int64_t sample, int64_t layer, int64_t num_kv_heads,
                             int64_t num_tokens) {
  TORCH_CHECK(step >= 0 && step < (int64_t{1} << 32) && sample >= 0 && sample < (int64_t{1} << 32),
              "step and sample must be below 2^32");
  TORCH_CHECK(layer < (1 << 16) && num_kv_heads <= (1 << 16) && num_tokens <= (int64_t{1} << 32),
              "layer, head or token out of the noise counter's range");
  at::Tensor noise_GT = at::empty({num_kv_heads, num_tokens}, at::kFloat);
  float* noise = noise_GT.data_ptr<float>();
  const uint64_t subsequence = (static_cast<uint64_t>(step) << 32) | static_cast<uint64_t>(sample);
  for (int64_t g = 0; g < num_kv_heads; ++g) {
    const uint64_t base = (static_cast<uint64_t>(layer) << 48) | (static_cast<uint64_t>(g) << 32);
    for (int64_t t = 0; t < num_tokens; ++t) {
      at::Philox4_32 engine(seed, subsequence, base | static_cast<uint64_t>(t));
      // 32 random bits, centred so that neither 0 nor 1 occurs: |noise| <= 22.9.
      const double u = (static_cast<double>(engine()) + 0.5) * 0x1p-32;
      *noise++ = static_cast<float>(std::log(u) - std::log1p(-u));
    }
  }
  return noise_GT;
}

}  // namespace dms
