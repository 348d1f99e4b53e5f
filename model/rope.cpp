#include "model/rope.h"

#include <cmath>
#include <numbers>

namespace dms {

namespace {

// Inverse frequencies, float32 arithmetic as in transformers (modeling_rope_utils), d/2 of them.
at::Tensor inverse_frequencies(const Architecture& a) {
  const int64_t half = a.head_dim / 2;
  const at::Tensor exponent = at::arange(0, a.head_dim, 2, at::kFloat) / static_cast<double>(a.head_dim);
  at::Tensor inverse = at::reciprocal(at::pow(at::scalar_tensor(a.rope.theta, at::kFloat), exponent));
  if (a.rope.type == RopeType::plain) return inverse;

  // llama3: long wavelengths are slowed by `factor`, short ones kept, those between interpolated.
  float* f = inverse.data_ptr<float>();
  const auto f32 = [](double x) { return static_cast<float>(x); };
  const double original = static_cast<double>(a.rope.original_max_position);
  const float longest_kept = f32(original / a.rope.high_freq_factor);
  const float shortest_slowed = f32(original / a.rope.low_freq_factor);
  const float factor = f32(a.rope.factor);
  for (int64_t i = 0; i < half; ++i) {
    const float wavelength = f32(2.0 * std::numbers::pi) / f[i];
    if (wavelength < longest_kept) continue;
    if (wavelength > shortest_slowed) {
      f[i] = f[i] / factor;
      continue;
    }
    const float smooth = (f32(original) / wavelength - f32(a.rope.low_freq_factor)) /
                         f32(a.rope.high_freq_factor - a.rope.low_freq_factor);
    f[i] = (1.0F - smooth) * f[i] / factor + smooth * f[i];
  }
  return inverse;
}

}  // namespace

RopeTables make_rope_tables(const Architecture& architecture, int64_t num_positions,
                            const at::TensorOptions& activation_options) {
  const at::Tensor positions = at::arange(num_positions, at::kFloat);
  const at::Tensor angle_Th = positions.unsqueeze(1) * inverse_frequencies(architecture).unsqueeze(0);
  const at::Tensor angle_Td = at::cat({angle_Th, angle_Th}, 1);
  return {at::cos(angle_Td).to(activation_options), at::sin(angle_Td).to(activation_options)};
}

at::Tensor apply_rope(const at::Tensor& x_TNd, const RopeTables& tables) {
  const int64_t half = x_TNd.size(2) / 2;
  const at::Tensor rotated = at::cat({-x_TNd.slice(2, half), x_TNd.slice(2, 0, half)}, 2);
  return x_TNd * tables.cos_Td.unsqueeze(1) + rotated * tables.sin_Td.unsqueeze(1);
}

}  // namespace dms
