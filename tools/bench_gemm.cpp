#include "tools/bench_gemm.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include "checkpoints/model_dir.h"
#include "recipes/user_error.h"
#include "trainer/hardware.h"

namespace dms {

at::Device benchmark_device(const std::string& name) {
  if (name == "cuda" && !at::hasCUDA()) {
    throw UserError("--device", "cuda: this machine has no GPU that the program can use");
  }
  return at::Device(name);
}

at::ScalarType resolved_scalar_type(ComputeDtype dtype, at::Device device) {
  if (dtype != ComputeDtype::automatic) return scalar_type(dtype);
  return device.is_cuda() || cpu_computes_bfloat16() ? at::kBFloat16 : at::kFloat;
}

std::vector<GemmShape> model_gemm_shapes(const Architecture& a, int64_t num_tokens) {
  return {{"q_proj", num_tokens, a.hidden_size, a.num_heads * a.head_dim},
          {"gate_proj", num_tokens, a.hidden_size, a.intermediate_size},
          {"down_proj", num_tokens, a.intermediate_size, a.hidden_size},
          {"head", num_tokens, a.hidden_size, a.vocab_size}};
}

GemmFigures bench_gemm(const GemmBenchmark& benchmark) {
  const at::NoGradGuard no_grad;
  const at::Device device = benchmark_device(benchmark.device);
  const int64_t side = device.is_cuda() ? 8192 : 2048;  // large enough for the best rate
  std::vector<GemmShape> shapes{{"square", side, side, side}};
  if (!benchmark.model.empty()) {
    for (GemmShape& shape : model_gemm_shapes(read_architecture(benchmark.model), benchmark.sequence_length)) {
      shapes.push_back(std::move(shape));
    }
  }
  const at::ScalarType dtype = resolved_scalar_type(benchmark.dtype, device);
  GemmFigures figures;
  figures.dtype = dtype == at::kBFloat16 ? "bfloat16" : "float32";
  figures.threads = at::get_num_threads();
  for (const GemmShape& shape : shapes) {
    const at::Tensor x = at::ones({shape.rows, shape.inner}, at::kFloat).to(device, dtype);
    const at::Tensor weight = at::ones({shape.columns, shape.inner}, at::kFloat).to(device, dtype);
    figures.rows.push_back({shape, timing_of_repeats(device, benchmark.repeats, [&] { at::linear(x, weight); })});
  }
  return figures;
}

}  // namespace dms
