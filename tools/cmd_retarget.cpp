#include <CLI/CLI.hpp>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "checkpoints/model_dir.h"
#include "data/staged_file.h"
#include "model/device_weights.h"
#include "recipes/user_error.h"
#include "tools/command_options.h"
#include "tools/commands.h"
#include "trainer/hardware.h"
#include "trainer/target_ratio.h"
#include "trainer/trained_adapter.h"

namespace dms {

namespace {

struct Flags {
  std::string model, adapters, out, dtype = "auto", device = "auto";
  TargetRatio target;
  bool force = false;
};

void run(const Flags& flags) {
  if (std::filesystem::exists(flags.out) && !flags.force) {
    throw UserError(flags.out, "exists already", {"choose another directory, or replace it with --force"});
  }
  const at::Device device = device_named(flags.device);
  const auto source = on_device(open_weights(flags.model, dtype_named(flags.dtype, device)), device);
  TrainedAdapter trained = load_trained_adapter(flags.adapters, *source, base_model_hash(flags.model));
  move_threshold(flags.target, "--ratio", trained.file.sequence_length, flags.model, *source, trained);
  StagedDir staged(flags.out);
  write_adapter_file(staged.path(), trained.file);
  staged.commit();
  std::printf("wrote %s\n", flags.out.c_str());
}

}  // namespace

void add_retarget(CLI::App& program) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command =
      program.add_subcommand("retarget", "Move a trained evictor to another KV-cache ratio, without training.");
  command->add_option("--model", flags->model, "Base model directory")->required()->type_name("DIR");
  command->add_option("--adapters", flags->adapters, "Run, checkpoint or adapter directory")
      ->required()
      ->type_name("DIR");
  command->add_option("--ratio", flags->target.ratio, "Dense over live keys at the end of a sequence")
      ->required()
      ->check(CLI::Range(1.01, 1000.0))
      ->type_name("X");
  command->add_option("--data", flags->target.data, "Token files to find the threshold on")
      ->required()
      ->type_name("FILE");
  command->add_option("--sequence-length", flags->target.sequence_length, "Tokens a sequence (default: the run's)")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  command->add_option("--max-tokens", flags->target.max_tokens, "Tokens a file, in evenly spaced windows")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_flag("--per-head-offsets", flags->target.per_head,
                    "An offset for each KV head, so that every head shrinks alike; default: one for the model");
  command->add_option("--out", flags->out, "Adapter directory to write; eval, generate and export take it")
      ->required()
      ->type_name("DIR");
  command->add_flag("--force", flags->force, "Replace --out");
  add_compute_options(*command, flags->dtype, flags->device);
  command->footer("Example:\n  dms retarget --model model --adapters run --ratio 5 --data calibration.h5 --out run-5x");
  command->callback([flags] { run(*flags); });
}

}  // namespace dms
