// The subcommands of `dms`.  Each add_* registers one on the program: its flags, help with an example, and the
// action, which parses, makes one call and prints.  Exceptions travel to main, the only place that ends the program.
#pragma once

namespace CLI {
class App;
}

namespace dms {

void add_prepare(CLI::App& program);
void add_train(CLI::App& program);
void add_eval(CLI::App& program);
void add_eval_tasks(CLI::App& program);
void add_generate(CLI::App& program);
void add_export(CLI::App& program);
void add_recall(CLI::App& program);
void add_retarget(CLI::App& program);
void add_report(CLI::App& program);
void add_inspect(CLI::App& program);
void add_bench(CLI::App& program);
void add_plan(CLI::App& program);
void add_doctor(CLI::App& program);
// Of `dms bench`, which add_bench registers.
void add_bench_attention(CLI::App& bench);
void add_bench_decode(CLI::App& bench);
void add_bench_gemm(CLI::App& bench);
void add_bench_head(CLI::App& bench);

}  // namespace dms
