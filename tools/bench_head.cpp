#include "tools/bench_head.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "checkpoints/model_dir.h"
#include "tools/bench_gemm.h"

namespace dms {

HeadFigures bench_head(const HeadBenchmark& benchmark) {
  const at::ScalarType dtype = resolved_scalar_type(benchmark.dtype, at::kCPU);
  const auto source = open_weights(benchmark.model, dtype);
  const Architecture& a = source->architecture();
  const int64_t T = benchmark.sequence_length, V = a.vocab_size, D = a.hidden_size;
  at::manual_seed(1);
  const at::Tensor teacher_TD = at::randn({T, D}).to(dtype),
                   student_TD = teacher_TD + 0.1 * at::randn({T, D}).to(dtype);
  const std::vector<uint8_t> all_counted(static_cast<size_t>(T), 1);

  HeadFigures figures;
  figures.seconds = timing_of_repeats(at::kCPU, benchmark.repeats, [&] {
    distill(*source, {{teacher_TD, student_TD, all_counted}}, benchmark.distillation, 1.0);
  });
  figures.flops = 3.0 * GemmShape{"", T, D, V}.flops();

  // The largest rate of the head's own shapes: the whole product, and the tile that the loss works in.
  const at::NoGradGuard no_grad;
  const int64_t positions = std::min(T, LogitTiles::max_positions(V));
  for (const int64_t columns : {V, std::min(V, kVocabularyTile)}) {
    const at::Tensor x = teacher_TD.slice(0, 0, positions), head = source->head().slice(0, 0, columns);
    const Timing seconds = timing_of_repeats(at::kCPU, benchmark.repeats, [&] { at::linear(x, head); });
    figures.gemm_flops_per_s =
        std::max(figures.gemm_flops_per_s, GemmShape{"", positions, D, columns}.flops() / seconds.min);
  }
  figures.logit_bytes = 2 * positions * V * static_cast<int64_t>(sizeof(float));
  figures.dense_logit_bytes = T * V * static_cast<int64_t>(sizeof(float));
  figures.dtype = dtype == at::kBFloat16 ? "bfloat16" : "float32";
  figures.threads = at::get_num_threads();
  return figures;
}

}  // namespace dms
