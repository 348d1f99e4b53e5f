// The program `dms`: its list of commands, and where their exceptions become messages and exit codes.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <exception>
#include <string>

#include "tools/commands.h"
#include "tools/exit_code.h"
#include "tools/openmp_waiting.h"
#include "tools/tensor_memory.h"
#include "tools/usage_error.h"

namespace dms {
namespace {

void add_commands(CLI::App& program) {
  add_prepare(program);
  add_train(program);
  add_eval(program);
  add_eval_tasks(program);
  add_generate(program);
  add_export(program);
  add_recall(program);
  add_retarget(program);
  add_report(program);
  add_inspect(program);
  add_bench(program);
  add_plan(program);
  add_doctor(program);
}

void complain(const CLI::App& program, const std::string& message) {
  std::fflush(stdout);
  std::fprintf(stderr, "%s: %s\n", invocation_name(program).c_str(), message.c_str());
}

// What was printed may still be in a buffer that no longer fits on the disk.
int flush_output(const CLI::App& program) {
  if (std::fflush(stdout) == 0 && !std::ferror(stdout) && std::cout.flush()) return kExitDone;
  complain(program, "cannot write to the standard output");
  return kExitFailed;
}

int run(int argc, char** argv) {
  use_reusable_tensor_memory();
  CLI::App program("Retrofits Dynamic Memory Sparsification into pretrained language models.", "dms");
  program.set_version_flag("--version", "dms " DMS_VERSION);
  program.require_subcommand(1);
  program.get_formatter()->column_width(36);
  program.footer("Example:\n  dms train recipes/smollm2-135m.yaml --run-dir run\n\nEach command has its own --help.");
  add_commands(program);
  try {
    program.parse(argc, argv);
    return flush_output(program);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {  // --help, --version
      program.exit(error);
      return flush_output(program);
    }
    complain(program, usage_error(program, error).what());
    return kExitWrongInput;
  } catch (const QuietExit& end) {
    return end.exit_code;
  } catch (...) {
    const Failure failure = failure_of(std::current_exception());
    complain(program, failure.message);
    return failure.exit_code;
  }
}

}  // namespace
}  // namespace dms

int main(int argc, char** argv) {
  dms::limit_openmp_spinning(argc, argv);
  return dms::run(argc, argv);
}
