#include <CLI/CLI.hpp>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "checkpoints/model_dir.h"
#include "data/sample_order.h"
#include "data/staged_file.h"
#include "data/tokenizer.h"
#include "model/device_weights.h"
#include "recipes/user_error.h"
#include "tools/command_options.h"
#include "tools/commands.h"
#include "trainer/evaluate.h"
#include "trainer/evaluation_json.h"
#include "trainer/hardware.h"
#include "trainer/model_tokens.h"
#include "trainer/progress_line.h"
#include "trainer/target_ratio.h"
#include "trainer/trained_adapter.h"

namespace dms {

namespace {

namespace fs = std::filesystem;

struct EvalFlags {
  std::string model, adapters, json, dtype = "auto", device = "auto";
  std::vector<std::string> data;
  int64_t sequence_length = 0, max_tokens = 32768;
  bool no_baselines = false, ignore_base_hash = false;
  TargetRatio target;
};

std::vector<std::string> token_texts(const std::string& model_dir, const std::vector<int32_t>& tokens) {
  std::vector<std::string> texts;
  if (!fs::exists(model_dir + "/tokenizer.json")) return texts;
  const auto tokenizer = Tokenizer::load(model_dir);
  for (int32_t token : tokens) texts.push_back(tokenizer->decode({token}, false));
  return texts;
}

void run_eval(const EvalFlags& flags) {
  const std::string base_sha256 = flags.ignore_base_hash ? "" : base_model_hash(flags.model);
  const at::Device device = device_named(flags.device);
  const auto source = on_device(open_weights(flags.model, dtype_named(flags.dtype, device)), device);
  TrainedAdapter trained = load_trained_adapter(flags.adapters, *source, base_sha256);
  const int64_t length = flags.sequence_length > 0 ? flags.sequence_length : trained.file.sequence_length;
  if (length <= trained.eviction.window + 1) {
    throw UserError("--sequence-length", std::to_string(length) + " leaves no key beyond the evictor's window of " +
                                             std::to_string(trained.eviction.window));
  }
  std::vector<std::pair<std::string, std::vector<Sample>>> inputs;
  int64_t num_windows = 0;
  for (const auto& file : open_token_files(flags.data, flags.model, source->architecture())) {
    inputs.emplace_back(fs::path(file->path()).stem().string(),
                        SampleOrder::evaluation_windows(*file, length, flags.max_tokens));
    num_windows += static_cast<int64_t>(inputs.back().second.size());
  }

  // A place that cannot be written to is found out before the work.
  if (!flags.json.empty()) StagedFile(flags.json);

  move_threshold(flags.target, "--target-ratio", length, flags.model, *source, trained);
  EvaluationOptions options;
  options.eviction = trained.eviction;
  options.attend_across_documents = trained.file.attend_across_documents;
  options.with_baselines = !flags.no_baselines;
  const int64_t passes = num_windows * (options.with_baselines ? 3 : 1);
  int64_t finished = 0;
  ProgressLine progress;
  std::vector<std::pair<std::string, EvaluationRecord>> sets;
  for (const auto& [name, windows] : inputs) {
    sets.emplace_back(name, evaluate(*source, *trained.adapter, options, windows, [&](int64_t done, int64_t) {
                        progress.update(
                            name + ": " + std::to_string(finished + done) + "/" + std::to_string(passes) + " passes",
                            finished + done, passes);
                      }));
    finished += static_cast<int64_t>(windows.size()) * (options.with_baselines ? 3 : 1);
  }
  std::fputs(evaluation_table(sets).c_str(), stdout);
  if (flags.target.given()) std::fputs(("\n" + drift_table(sets, flags.target.ratio)).c_str(), stdout);
  if (flags.json.empty()) return;
  const EvaluationContext context{trained.file.adapter,    trained.file.bias,
                                  trained.file.base_model, trained.file.step,
                                  flags.target.ratio,      token_texts(flags.model, sets.front().second.sample_tokens)};
  write_file(flags.json, evaluation_json(sets, context));
}

}  // namespace

void add_eval(CLI::App& program) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* command =
      program.add_subcommand("eval", "Measure a trained evictor under hard eviction, beside baselines of equal size.");
  command->add_option("--model", flags->model, "Base model directory")->required();
  command->add_option("--adapters", flags->adapters, "Run, checkpoint or adapter directory")->required();
  command->add_option("--data", flags->data, "Token files; several are reported each and pooled")->required();
  command->add_option("--sequence-length", flags->sequence_length, "Tokens a window (default: the run's)")
      ->check(CLI::PositiveNumber);
  command->add_option("--max-tokens", flags->max_tokens, "Tokens a file, in evenly spaced windows")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_target_ratio_options(*command, flags->target);
  add_compute_options(*command, flags->dtype, flags->device);
  command->add_option("--json", flags->json, "Write all figures to this file");
  command->add_flag("--no-baselines", flags->no_baselines, "Skip the sliding-window and sinks-plus-window baselines");
  command->add_flag("--ignore-base-hash", flags->ignore_base_hash, "Accept adapters trained on other weights");
  command->footer("Example:\n  dms eval --model model --adapters run --data held-out.h5 --json eval.json");
  command->callback([flags] { run_eval(*flags); });
}

}  // namespace dms
