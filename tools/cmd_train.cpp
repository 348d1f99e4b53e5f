#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "checkpoints/model_dir.h"
#include "recipes/user_error.h"
#include "tools/commands.h"
#include "tools/exit_code.h"
#include "tools/number_text.h"
#include "tools/stop_signal.h"
#include "trainer/ranks.h"
#include "trainer/ranks_launcher.h"
#include "trainer/recipe.h"
#include "trainer/rehearsal.h"
#include "trainer/run.h"

namespace dms {

namespace {

constexpr int64_t kMostLocalRanks = 256;

struct TrainFlags {
  std::string recipe, run_dir;
  std::vector<std::string> overrides;
  int64_t num_ranks = 0;  // 0 = what the environment says
  int64_t max_restarts = 0;
  bool resume = false, dry_run = false;
};

void start_ranks(const TrainFlags& flags, const Recipe& recipe) {
  require_sequence_for_each_rank(recipe, flags.num_ranks);
  LaunchOptions launch;
  launch.num_ranks = flags.num_ranks;
  launch.max_restarts = flags.max_restarts;
  launch.arguments = {"train", flags.recipe};
  launch.arguments.insert(launch.arguments.end(), flags.overrides.begin(), flags.overrides.end());
  launch.arguments.insert(launch.arguments.end(), {"--run-dir", flags.run_dir});
  launch.restart_arguments = launch.arguments;
  launch.restart_arguments.push_back("--resume");
  if (flags.resume) launch.arguments = launch.restart_arguments;
  launch.stop_requested = stop_requested;
  launch.speaker = "dms train";
  throw QuietExit{launch_local_ranks(launch)};
}

// One of several ranks ends: the first to fail says why, the others leave with its exit code.  Not by way of
// destructors: a process group waits in its for ranks that will never answer.
[[noreturn]] void end_rank(RankGroup& ranks, const std::exception_ptr& exception) {
  const Failure failure = failure_of(exception);
  bool lost_another = false;
  try {
    std::rethrow_exception(exception);
  } catch (const RankLost&) {
    lost_another = true;
  } catch (...) {
  }
  RankGroup::FirstFailure first{ranks.speaks(), kExitInterrupted};
  if (failure.exit_code != kExitInterrupted) first = ranks.record_failure(failure.exit_code, lost_another);
  if (first.mine && failure.exit_code == kExitInterrupted) {
    std::fprintf(stderr, "dms train: %s\n", failure.message.c_str());
  } else if (first.mine) {
    std::fprintf(stderr, "dms train: rank %ld on %s: %s\n", ranks.rank(), ranks.host_of(ranks.rank()).c_str(),
                 failure.message.c_str());
  }
  std::fflush(stdout);
  std::_Exit(first.exit_code);
}

void dry_run(Recipe recipe, int64_t num_ranks) {
  resolve_recipe(recipe, read_architecture(recipe.model_path), num_ranks);
  std::fputs(dump_recipe(recipe).c_str(), stdout);
  if (num_ranks == 1) return;
  const Rehearsal step = rehearse_step(recipe, num_ranks);
  const auto [fewest, most] = std::minmax_element(step.sequences_of_rank.begin(), step.sequences_of_rank.end());
  std::fprintf(
      stderr, "a step of %ld ranks, rehearsed: %s sequences a rank; each receives\n", num_ranks,
      *fewest == *most ? count_text(*most).c_str() : (count_text(*fewest) + " or " + count_text(*most)).c_str());
  std::fprintf(stderr, "  weights    %s in %ld messages (placement: %s)\n",
               bytes_text(static_cast<double>(step.weight_bytes)).c_str(), step.weight_messages,
               name_of(recipe.trainer.placement));
  std::fprintf(stderr, "  gradients  %s in %ld message%s\n",
               bytes_text(static_cast<double>(step.gradient_bytes)).c_str(), step.gradient_messages,
               step.gradient_messages == 1 ? "" : "s");
}

void run_train(const TrainFlags& flags) {
  Recipe recipe = read_recipe(flags.recipe, flags.overrides);
  if (flags.dry_run) return dry_run(std::move(recipe), std::max<int64_t>(1, flags.num_ranks));
  catch_stop_signals();
  if (flags.num_ranks > 1) start_ranks(flags, recipe);
  const LaunchPlace place = flags.num_ranks == 1 ? LaunchPlace() : read_launch_place(current_environment());
  RankGroupOptions options;
  options.hang_seconds = recipe.trainer.hang_seconds;
  const std::unique_ptr<RankGroup> ranks = join_ranks(place, options);
  try {
    train(std::move(recipe), {flags.run_dir, flags.resume, stop_requested}, *ranks);
  } catch (...) {
    if (ranks->size() == 1) throw;
    end_rank(*ranks, std::current_exception());
  }
  if (!ranks->speaks()) return;
  std::printf("%s: trained; next:\n  dms eval --model MODEL --adapters %s --data HELD_OUT.h5 --json eval.json\n",
              flags.run_dir.c_str(), flags.run_dir.c_str());
}

}  // namespace

void add_train(CLI::App& program) {
  auto flags = std::make_shared<TrainFlags>();
  CLI::App* command = program.add_subcommand("train", "Retrofit eviction into a pretrained model, as a recipe says.");
  command->add_option("recipe", flags->recipe, "YAML recipe")->required();
  command->add_option("overrides", flags->overrides, "key.path=value, later ones win");
  command->add_option("--run-dir", flags->run_dir, "Directory of the run (default: run)")->default_val("run");
  command->add_option("--nproc", flags->num_ranks, "Ranks to start on this host (default: the launcher's, else 1)")
      ->check(CLI::Range(int64_t{1}, kMostLocalRanks));
  command->add_option("--max-restarts", flags->max_restarts, "With --nproc: restarts of a run that lost a rank")
      ->check(CLI::Range(int64_t{0}, int64_t{1000000}));
  command->add_flag("--resume", flags->resume, "Continue the run in --run-dir, or start it if there is none");
  command->add_flag(
      "--dry-run", flags->dry_run,
      "Print the resolved recipe, rehearse a step's communication of --nproc ranks in this process, and stop");
  command->footer(
      "Example:\n  dms train recipes/smollm2-135m.yaml trainer.steps=100 --run-dir run\n"
      "  dms train my-recipe.yaml --nproc 8 --max-restarts 3\n"
      "  torchrun --no-python --nnodes 2 --nproc-per-node 8 ... dms train my-recipe.yaml     (or srun, or mpirun)\n\n"
      "SIGTERM or Ctrl-C saves a checkpoint and exits with code 3; --resume goes on from there, bit for bit, on any\n"
      "number of ranks.");
  command->callback([flags] { run_train(*flags); });
}

}  // namespace dms
