#include "tests/tools/valid_inputs.h"

#include <random>
#include <sstream>
#include <stdexcept>

#include "tests/support/child_process.h"
#include "tests/support/sandbox.h"
#include "tests/support/tiny_model.h"

namespace dms {
namespace {

constexpr const char* recipe =
    "model:\n"
    "  path: model\n"
    "data:\n"
    "  train: [train.h5]\n"
    "  held_out: [held-out.h5]\n"
    "adapter:\n"
    "  kind: linear\n"
    "eviction:\n"
    "  window: 8\n"
    "compression:\n"
    "  initial: 1.5\n"
    "  final: 2.0\n"
    "  ramp_steps: 2\n"
    "warm_start:\n"
    "  tokens: 128\n"
    "trainer:\n"
    "  steps: 2\n"
    "  global_batch: 1\n"
    "  sequence_length: 64\n"
    "  checkpoint_every: 1\n"
    "  dtype: float32\n";

std::string random_words() {
  const std::vector<std::string> words = {"the",  "man", "of",  "a",  "hat", "in",   "to",  "an",  "on",  "at",
                                          "from", "was", "red", "12", "is",  "then", "sea", "it.", "and", "his"};
  std::mt19937 random(1);
  std::string text;
  for (int i = 0; i < 1500; ++i) text += words[random() % words.size()] + (i % 12 == 11 ? "\n" : " ");
  return text;
}

std::map<std::string, std::string> make_valid_files() {
  Sandbox sandbox({{"text.txt", random_words()}, {"run.yaml", recipe}});
  write_tiny_model(sandbox / "model");
  ChildOptions options;
  options.directory = sandbox.path();
  options.environment = {"OMP_NUM_THREADS=1"};
  for (const char* command :
       {"prepare --tokenizer model --out train.h5 text.txt", "prepare --tokenizer model --out held-out.h5 text.txt",
        "train run.yaml", "eval --model model --adapters run --data held-out.h5 --max-tokens 64 --json eval.json",
        "export --run run --to sidecar --out sidecar"}) {
    const ChildResult result = run_child(command_line(command), options);
    if (result.exit_code != 0) throw std::runtime_error("dms " + std::string(command) + ": " + result.err);
  }
  return sandbox.contents();
}

}  // namespace

std::vector<std::string> command_line(const std::string& command) {
  std::vector<std::string> argv = {DMS_PROGRAM};
  std::istringstream words(command);
  for (std::string word; words >> word;) argv.push_back(word);
  return argv;
}

const std::map<std::string, std::string>& valid_files() {
  static const std::map<std::string, std::string> files = make_valid_files();
  return files;
}

}  // namespace dms
