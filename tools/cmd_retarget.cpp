#include <CLI/CLI.hpp>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "checkpoints/model_dir.h"
#include "data/sample_order.h"
#include "data/staged_file.h"
#include "model/device_weights.h"
#include "recipes/user_error.h"
#include "tools/command_options.h"
#include "tools/commands.h"
#include "trainer/hardware.h"
#include "trainer/model_tokens.h"
#include "trainer/progress_line.h"
#include "trainer/threshold.h"
#include "trainer/trained_adapter.h"

namespace dms {

namespace {

struct Flags {
  std::string model, adapters, out, dtype = "auto", device = "auto";
  std::vector<std::string> data;
  double ratio = 0.0;
  int64_t sequence_length = 0, max_tokens = 8192;
  bool force = false;
};

void run(const Flags& flags) {
  if (std::filesystem::exists(flags.out) && !flags.force) {
    throw UserError(flags.out, "exists already", {"choose another directory, or replace it with --force"});
  }
  const at::Device device = device_named(flags.device);
  const auto source = on_device(open_weights(flags.model, dtype_named(flags.dtype, device)), device);
  TrainedAdapter trained = load_trained_adapter(flags.adapters, *source, base_model_hash(flags.model));
  const int64_t length = flags.sequence_length > 0 ? flags.sequence_length : trained.file.sequence_length;
  const int64_t window = trained.eviction.window;
  const double share = length > window + 1 ? keep_share(flags.ratio, length, window) : 0.0;
  if (share <= 0.0) {
    throw UserError("--ratio",
                    std::to_string(flags.ratio) + " is out of reach at " + std::to_string(length) + " tokens",
                    {"the window of " + std::to_string(window) + " alone allows " +
                     std::to_string(static_cast<double>(length) / static_cast<double>(window + 1))});
  }
  std::vector<Sample> windows;
  for (const auto& file : open_token_files(flags.data, flags.model, source->architecture())) {
    for (Sample& sample : SampleOrder::evaluation_windows(*file, length, flags.max_tokens)) {
      windows.push_back(std::move(sample));
    }
  }
  StagedDir staged(flags.out);
  ThresholdResult fitted;
  {
    ProgressLine progress;
    fitted = fit_threshold(*source, *trained.adapter, trained.eviction, share, windows,
                           [&](int64_t done, int64_t total) { progress.update("running the evictor", done, total); });
  }
  trained.file.alpha_offset = trained.adapter->alpha_offset();
  write_adapter_file(staged.path(), trained.file);
  staged.commit();
  std::printf(
      "%s: alpha_offset moved by %+.3f; keeps %.1f%% of the keys beyond the window, a cache %.2fx smaller at %ld "
      "tokens\n",
      flags.out.c_str(), fitted.offset_change, 100.0 * fitted.keep_share.back(), flags.ratio, length);
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
  command->add_option("--ratio", flags->ratio, "Dense over compact KV memory at the end of a sequence")
      ->required()
      ->check(CLI::Range(1.01, 1000.0))
      ->type_name("X");
  command->add_option("--data", flags->data, "Token files to find the threshold on")->required()->type_name("FILE");
  command->add_option("--sequence-length", flags->sequence_length, "Tokens a sequence (default: the run's)")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  command->add_option("--max-tokens", flags->max_tokens, "Tokens a file, in evenly spaced windows")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--out", flags->out, "Adapter directory to write; eval, generate and export take it")
      ->required()
      ->type_name("DIR");
  command->add_flag("--force", flags->force, "Replace --out");
  add_compute_options(*command, flags->dtype, flags->device);
  command->footer("Example:\n  dms retarget --model model --adapters run --ratio 5 --data calibration.h5 --out run-5x");
  command->callback([flags] { run(*flags); });
}

}  // namespace dms
