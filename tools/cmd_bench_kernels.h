// The measurements of single kernels below `dms bench`.
#pragma once

namespace CLI {
class App;
}

namespace dms {

void add_bench_attention(CLI::App& bench);
void add_bench_gemm(CLI::App& bench);

}  // namespace dms
