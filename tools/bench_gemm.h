// How fast this process multiplies matrices: what every other rate is measured against.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/architecture.h"
#include "tools/timing.h"
#include "trainer/recipe.h"

namespace dms {

// A linear layer: [rows, inner] x [inner, columns], 2 * rows * inner * columns FLOPs.
struct GemmShape {
  std::string name;
  int64_t rows = 0, inner = 0, columns = 0;
  double flops() const { return 2.0 * static_cast<double>(rows) * static_cast<double>(inner * columns); }
};

// "cpu" or "cuda".  Throws UserError where there is no such device.
at::Device benchmark_device(const std::string& name);
// What "auto" comes to on that device.
at::ScalarType resolved_scalar_type(ComputeDtype dtype, at::Device device);

// The linears that a step of the model spends its time in, at T tokens.
std::vector<GemmShape> model_gemm_shapes(const Architecture& architecture, int64_t num_tokens);

struct GemmBenchmark {
  std::string model;  // directory; empty: 2048^3 alone
  int64_t sequence_length = 2048, repeats = 7;
  ComputeDtype dtype = ComputeDtype::automatic;
  std::string device = "cpu";
};

struct GemmFigures {
  struct Row {
    GemmShape shape;
    Timing seconds;
    double flops_per_s() const { return shape.flops() / seconds.median; }
  };
  std::vector<Row> rows;
  std::string dtype;
  int threads = 0;
};

// One multiplication that is not timed, then `repeats` that are, of each shape.  Throws UserError.
GemmFigures bench_gemm(const GemmBenchmark& benchmark);

}  // namespace dms
