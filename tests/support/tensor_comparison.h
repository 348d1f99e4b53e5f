// Comparing tensors in tests.  Both comparisons refuse what would make them say yes to anything: an empty tensor, two
// arguments that share memory, shapes that differ.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdint>

namespace dms {

// error = max|actual - reference| / max|reference|, in float64, must be at most `tolerance`.  A value that is not
// finite on either side fails; a reference of zeros admits only zeros.  dtypes may differ.
::testing::AssertionResult is_near(const at::Tensor& actual, const at::Tensor& reference, double tolerance);

// Same dtype and the same bits.
::testing::AssertionResult is_bit_equal(const at::Tensor& actual, const at::Tensor& reference);

// Standard normal values on the CPU, float64, a function of the seed alone.
at::Tensor seeded_normal(at::IntArrayRef shape, uint64_t seed);

}  // namespace dms
