#include <CLI/CLI.hpp>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "checkpoints/model_dir.h"
#include "tools/commands.h"
#include "tools/stop_signal.h"
#include "trainer/recipe.h"
#include "trainer/run.h"

namespace dms {

namespace {

struct TrainFlags {
  std::string recipe, run_dir;
  std::vector<std::string> overrides;
  bool resume = false, dry_run = false;
};

void run_train(const TrainFlags& flags) {
  Recipe recipe = read_recipe(flags.recipe, flags.overrides);
  if (flags.dry_run) {
    resolve_recipe(recipe, read_architecture(recipe.model_path));
    std::fputs(dump_recipe(recipe).c_str(), stdout);
    return;
  }
  catch_stop_signals();
  train(std::move(recipe), {flags.run_dir, flags.resume, stop_requested});
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
  command->add_flag("--resume", flags->resume, "Continue the run in --run-dir, or start it if there is none");
  command->add_flag("--dry-run", flags->dry_run, "Print the resolved recipe and stop");
  command->footer(
      "Example:\n  dms train recipes/smollm2-135m.yaml trainer.steps=100 --run-dir run\n\n"
      "SIGTERM or Ctrl-C saves a checkpoint and exits with code 3; --resume goes on from there, bit for bit.");
  command->callback([flags] { run_train(*flags); });
}

}  // namespace dms
