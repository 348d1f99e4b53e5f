// The program `dms`: its list of commands, and the only place that knows exit codes:
//   0 done; 1 failed while running; 2 the user's input is wrong; 3 stopped by a signal after saving.
#include <malloc.h>
#include <CLI/CLI.hpp>

#include <climits>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "recipes/user_error.h"
#include "tools/commands.h"
#include "tools/usage_error.h"

namespace dms {
namespace {

constexpr int exit_done = 0, exit_failed = 1, exit_wrong_input = 2, exit_interrupted = 3;

void add_commands(CLI::App& program) {
  add_prepare(program);
  add_train(program);
  add_eval(program);
  add_eval_tasks(program);
  add_generate(program);
  add_export(program);
  add_retarget(program);
  add_report(program);
  add_inspect(program);
  add_bench(program);
}

// Activations of some MiB come and go in every layer.  glibc would give each back to the kernel and have it cleared and
// mapped again a moment later.
void keep_freed_memory() {
  constexpr int largest_accepted = 32 << 20;
  mallopt(M_MMAP_THRESHOLD, largest_accepted);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
}

void complain(const CLI::App& program, const std::string& message) {
  std::fflush(stdout);
  std::fprintf(stderr, "%s: %s\n", invocation_name(program).c_str(), message.c_str());
}

// What was printed may still be in a buffer that no longer fits on the disk.
int flush_output(const CLI::App& program) {
  if (std::fflush(stdout) == 0 && !std::ferror(stdout) && std::cout.flush()) return exit_done;
  complain(program, "cannot write to the standard output");
  return exit_failed;
}

int run(int argc, char** argv) {
  keep_freed_memory();
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
    return exit_wrong_input;
  } catch (const UserError& error) {
    complain(program, error.what());
    return exit_wrong_input;
  } catch (const Interrupted& error) {
    complain(program, error.what());
    return exit_interrupted;
  } catch (const std::bad_alloc&) {
    complain(program, "out of memory");
    return exit_failed;
  } catch (const std::exception& error) {
    complain(program, error.what());
    return exit_failed;
  }
}

}  // namespace
}  // namespace dms

int main(int argc, char** argv) { return dms::run(argc, argv); }
