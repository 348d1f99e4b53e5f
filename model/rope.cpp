#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace dms {

namespace {

// Long wavelengths are slowed by `factor`, short ones kept, those between interpolated (Llama 3.1).
void scale_llama3(const RopeScaling& rope, at::Tensor& inverse_h) {
  float* f = inverse_h.data_ptr<float>();
  const auto f32 = [](double x) { return static_cast<float>(x); };
  const double original = static_cast<double>(rope.original_max_position);
  const float longest_kept = f32(original / rope.high_freq_factor);
  const float shortest_slowed = f32(original / rope.low_freq_factor);
  const float factor = f32(rope.factor);
  for (int64_t i = 0; i < inverse_h.numel(); ++i) {
    const float wavelength = f32(2.0 * std::numbers::pi) / f[i];
    if (wavelength < longest_kept) continue;
    if (wavelength > shortest_slowed) {
      f[i] = f[i] / factor;
      continue;
    }
    const float smooth =
        (f32(original) / wavelength - f32(rope.low_freq_factor)) / f32(rope.high_freq_factor - rope.low_freq_factor);
    f[i] = (1.0F - smooth) * f[i] / factor + smooth * f[i];
  }
}

// Channels that turn more than beta_fast times over the original length are kept, those that turn less than beta_slow
// times slowed by `factor`, with a linear ramp over the channels between (Peng et al. 2023, section 3.2).
at::Tensor scaled_yarn(const RopeScaling& rope, int64_t head_dim, const at::Tensor& power_h) {
  const double dim = static_cast<double>(head_dim);
  const auto channel_of_turns = [&](double turns) {
    const double original = static_cast<double>(rope.original_max_position);
    return dim * std::log(original / (turns * 2.0 * std::numbers::pi)) / (2.0 * std::log(rope.theta));
  };
  double low = channel_of_turns(rope.beta_fast), high = channel_of_turns(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;
  const at::Tensor ramp_h = at::clamp((at::arange(head_dim / 2, at::kFloat) - low) / (high - low), 0, 1);
  const at::Tensor kept_h = 1 - ramp_h;
  return at::reciprocal(rope.factor * power_h) * (1 - kept_h) + at::reciprocal(power_h) * kept_h;
}

// Inverse frequencies, float32 arithmetic as in transformers (modeling_rope_utils), d/2 of them.
at::Tensor inverse_frequencies(const Architecture& a) {
  const at::Tensor exponent_h = at::arange(0, a.head_dim, 2, at::kFloat) / static_cast<double>(a.head_dim);
  const at::Tensor power_h = at::pow(at::scalar_tensor(a.rope.theta, at::kFloat), exponent_h);
  at::Tensor inverse_h = at::reciprocal(power_h);
  switch (a.rope.type) {
    case RopeType::plain:
      return inverse_h;
    case RopeType::linear:
      return inverse_h / a.rope.factor;
    case RopeType::llama3:
      scale_llama3(a.rope, inverse_h);
      return inverse_h;
    case RopeType::yarn:
      return scaled_yarn(a.rope, a.head_dim, power_h);
  }
  TORCH_CHECK(false, "unknown RopeType");
}

}  // namespace

RopeTables make_rope_tables(const Architecture& architecture, int64_t num_positions,
                            const at::TensorOptions& activation_options) {
  const at::Tensor positions = at::arange(num_positions, at::kFloat);
  const at::Tensor angle_Th = positions.unsqueeze(1) * inverse_frequencies(architecture).unsqueeze(0);
  const at::Tensor angle_Td = at::cat({angle_Th, angle_Th}, 1);
  const auto scaled = [&](const at::Tensor& values_Td) {
    return architecture.rope.attention_factor == 1.0 ? values_Td : values_Td * architecture.rope.attention_factor;
  };
  return {scaled(at::cos(angle_Td)).to(activation_options), scaled(at::sin(angle_Td)).to(activation_options)};
}

at::Tensor apply_rope(const at::Tensor& x_TNd, const RopeTables& tables) {
  const int64_t half = x_TNd.size(2) / 2;
  at::Tensor rotated = at::cat({-x_TNd.slice(2, half), x_TNd.slice(2, 0, half)}, 2);
  return (x_TNd * tables.cos_Td.unsqueeze(1)).add_(rotated.mul_(tables.sin_Td.unsqueeze(1)));
}

}  // namespace dms
