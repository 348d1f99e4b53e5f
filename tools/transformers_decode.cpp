#include "tools/transformers_decode.h"

#include <spawn.h>
#include <sys/wait.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/staged_file.h"
#include "recipes/user_error.h"
#include "tools/bench_scripts.h"

extern char** environ;

namespace dms {

namespace {

class ScratchDir {
 public:
  ScratchDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "dms-decode-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw IoError(pattern, "create a directory", errno);
    path_ = pattern;
  }
  ~ScratchDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchDir(const ScratchDir&) = delete;
  ScratchDir& operator=(const ScratchDir&) = delete;
  std::string file(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

void run_python(const std::string& python, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {python, "-c", std::string(kTransformersDecodePy)});
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_t child = 0;
  const int failure = ::posix_spawnp(&child, python.c_str(), nullptr, nullptr, argv.data(), environ);
  if (failure != 0) {
    throw UserError("--transformers", "cannot start '" + python + "': " + std::strerror(failure),
                    {"expected a Python with torch and transformers, such as .venv/bin/python3"});
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    throw UserError("--transformers", "'" + python + "' could not decode with transformers; what it said is above",
                    {"expected a Python with torch and transformers, such as .venv/bin/python3"});
  }
}

}  // namespace

std::vector<DecodeRow> decode_with_transformers(const std::string& python, const std::string& model,
                                                const std::vector<std::vector<int32_t>>& prompts,
                                                const std::vector<int64_t>& sequences, int64_t steps,
                                                const std::string& dtype, int64_t threads) {
  const ScratchDir scratch;
  std::string lines, batches;
  for (const auto& prompt : prompts) lines += nlohmann::json(prompt).dump() + "\n";
  for (const int64_t count : sequences) batches += (batches.empty() ? "" : ",") + std::to_string(count);
  write_file(scratch.file("prompts.jsonl"), lines);
  const auto context = static_cast<int64_t>(prompts.front().size());
  run_python(python, {"--model", model, "--context", std::to_string(context), "--batch", batches, "--prompts",
                      scratch.file("prompts.jsonl"), "--steps", std::to_string(steps), "--dtype", dtype, "--threads",
                      std::to_string(threads), "--json", scratch.file("figures.json")});
  std::vector<DecodeRow> rows;
  const nlohmann::json figures = nlohmann::json::parse(read_file(scratch.file("figures.json")));
  for (const nlohmann::json& figure : figures.at("rows")) {
    DecodeRow row;
    row.engine = "transformers";
    row.context = context;
    row.sequences = figure.at("sequences");
    row.prefill_seconds = figure.at("prefill_seconds");
    row.step_seconds = figure.at("step_seconds");
    row.step_seconds_min = figure.at("step_seconds_min");
    row.step_seconds_max = figure.at("step_seconds_max");
    row.kv_bytes = row.peak_prefill_kv_bytes = figure.at("kv_bytes");
    row.peak_prefill_kv_bytes /= row.sequences;
    row.kv_read_bytes_per_s = figure.at("kv_read_bytes_per_s");
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace dms
