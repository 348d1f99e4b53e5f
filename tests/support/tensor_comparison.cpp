#include "tests/support/tensor_comparison.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cstring>
#include <sstream>

namespace dms {

namespace {

// "" when the two may be compared at all.
std::string obstacle(const at::Tensor& actual, const at::Tensor& reference) {
  std::ostringstream text;
  if (!actual.defined() || !reference.defined()) {
    text << "an undefined tensor";
  } else if (actual.sizes() != reference.sizes()) {
    text << "shape " << actual.sizes() << " against " << reference.sizes();
  } else if (actual.numel() == 0) {
    text << "empty tensors: nothing is compared";
  } else if (actual.is_alias_of(reference)) {
    text << "both arguments share one memory";
  }
  return text.str();
}

std::string index_text(int64_t flat, at::IntArrayRef shape) {
  std::string text;
  for (int64_t i = static_cast<int64_t>(shape.size()) - 1; i >= 0; --i) {
    const int64_t size = shape[static_cast<size_t>(i)];
    text = std::to_string(flat % size) + (text.empty() ? "" : ", ") + text;
    flat /= size;
  }
  return "[" + text + "]";
}

}  // namespace

::testing::AssertionResult is_near(const at::Tensor& actual, const at::Tensor& reference, double tolerance) {
  const std::string refused = obstacle(actual, reference);
  if (!refused.empty()) return ::testing::AssertionFailure() << refused;
  const at::Tensor a = actual.detach().to(at::kCPU, at::kDouble), r = reference.detach().to(at::kCPU, at::kDouble);
  if (!at::isfinite(a).all().item<bool>()) return ::testing::AssertionFailure() << "a value is not finite";
  if (!at::isfinite(r).all().item<bool>()) return ::testing::AssertionFailure() << "the reference is not finite";
  const at::Tensor difference = (a - r).abs();
  const double largest = difference.max().item<double>(), scale = r.abs().max().item<double>();
  if (largest <= tolerance * scale) return ::testing::AssertionSuccess();
  const int64_t worst = difference.argmax().item<int64_t>();
  return ::testing::AssertionFailure() << "error " << largest / scale << " > " << tolerance << ": "
                                       << a.reshape({-1})[worst].item<double>() << " against "
                                       << r.reshape({-1})[worst].item<double>() << " at "
                                       << index_text(worst, a.sizes()) << "; largest reference value " << scale;
}

::testing::AssertionResult is_bit_equal(const at::Tensor& actual, const at::Tensor& reference) {
  const std::string refused = obstacle(actual, reference);
  if (!refused.empty()) return ::testing::AssertionFailure() << refused;
  if (actual.scalar_type() != reference.scalar_type()) return ::testing::AssertionFailure() << "dtypes differ";
  const at::Tensor a = actual.detach().contiguous(), r = reference.detach().contiguous();
  const auto size = static_cast<size_t>(a.element_size());
  const auto* a_bytes = static_cast<const char*>(a.data_ptr());
  const auto* r_bytes = static_cast<const char*>(r.data_ptr());
  for (int64_t i = 0; i < a.numel(); ++i) {
    const size_t offset = static_cast<size_t>(i) * size;
    if (std::memcmp(a_bytes + offset, r_bytes + offset, size) == 0) continue;
    return ::testing::AssertionFailure() << a.reshape({-1})[i].item<double>() << " against "
                                         << r.reshape({-1})[i].item<double>() << " at " << index_text(i, a.sizes());
  }
  return ::testing::AssertionSuccess();
}

at::Tensor seeded_normal(at::IntArrayRef shape, uint64_t seed) {
  return at::randn(shape, at::detail::createCPUGenerator(seed), at::TensorOptions().dtype(at::kDouble));
}

}  // namespace dms
