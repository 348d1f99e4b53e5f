#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <string>

#include "data/prepare.h"
#include "tools/commands.h"
#include "tools/stop_signal.h"

namespace dms {
namespace {

std::string with_thousands(int64_t number) {
  std::string digits = std::to_string(number);
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3) digits.insert(static_cast<size_t>(at), ",");
  return digits;
}

// A bar that is redrawn on a terminal; elsewhere a line every few seconds, and none for a short job.
class ProgressDisplay {
 public:
  ~ProgressDisplay() {
    if (drawn_) std::fprintf(stderr, "\r\033[K");
  }

  void show(const PrepareProgress& progress) {
    const Clock::time_point now = Clock::now();
    if (progress.phase != phase_) {
      phase_ = progress.phase;
      phase_begin_ = now;
    }
    if (now - last_shown_ < (is_terminal_ ? std::chrono::milliseconds(100) : std::chrono::milliseconds(5000))) return;
    last_shown_ = now;
    const double share = progress.total_bytes == 0
                             ? 1.0
                             : static_cast<double>(progress.done_bytes) / static_cast<double>(progress.total_bytes);
    char figures[160];
    std::snprintf(figures, sizeof figures, "%3.0f%%  %.1f of %.1f MB%s", 100 * share, megabytes(progress.done_bytes),
                  megabytes(progress.total_bytes), speed(progress, now).c_str());
    if (is_terminal_) {
      constexpr int kWidth = 24;
      const auto filled = static_cast<size_t>(std::clamp(share, 0.0, 1.0) * kWidth);
      std::fprintf(stderr, "\r%-10s [%s%s] %s\033[K", name(), std::string(filled, '#').c_str(),
                   std::string(kWidth - filled, '.').c_str(), figures);
      drawn_ = true;
    } else {
      std::fprintf(stderr, "%s %s\n", name(), figures);
    }
    std::fflush(stderr);
  }

 private:
  using Clock = std::chrono::steady_clock;

  static double megabytes(uint64_t bytes) { return static_cast<double>(bytes) / 1e6; }

  const char* name() const {
    switch (phase_) {
      case PrepareProgress::Phase::kReading:
        return "reading";
      case PrepareProgress::Phase::kTokenizing:
        return "tokenizing";
      case PrepareProgress::Phase::kWriting:
        return "writing";
    }
    return "";
  }

  std::string speed(const PrepareProgress& progress, Clock::time_point now) const {
    const double seconds = std::chrono::duration<double>(now - phase_begin_).count();
    const double done = megabytes(progress.done_bytes - progress.resumed_bytes);
    if (seconds < 0.5 || done <= 0) return "";
    const auto left = static_cast<int64_t>(megabytes(progress.total_bytes - progress.done_bytes) / (done / seconds));
    char text[80];
    std::snprintf(text, sizeof text, "  %.1f MB/s  ETA %lld:%02lld:%02lld", done / seconds,
                  static_cast<long long>(left / 3600), static_cast<long long>(left / 60 % 60),
                  static_cast<long long>(left % 60));
    return text;
  }

  const bool is_terminal_ = isatty(STDERR_FILENO) != 0;
  bool drawn_ = false;
  PrepareProgress::Phase phase_ = PrepareProgress::Phase::kReading;
  Clock::time_point phase_begin_ = Clock::now(), last_shown_ = Clock::now();
};

void run_prepare(const PrepareOptions& options) {
  catch_stop_signals();
  PrepareResult result;
  {
    ProgressDisplay display;
    result = prepare(options, stop_requested, [&](const PrepareProgress& progress) { display.show(progress); });
  }
  std::printf("%s: %s tokens in %s documents from %s files\n", options.out.c_str(),
              with_thousands(result.num_tokens).c_str(), with_thousands(result.num_documents).c_str(),
              with_thousands(result.num_sources).c_str());
  if (result.num_resumed_units > 0) {
    std::printf("  %s of %s parts were done by an earlier run\n", with_thousands(result.num_resumed_units).c_str(),
                with_thousands(result.num_units).c_str());
  }
  constexpr size_t kMostShown = 8;
  for (size_t i = 0; i < std::min(kMostShown, result.kinds.size()); ++i) std::printf("  %s\n", result.kinds[i].c_str());
  if (result.kinds.size() > kMostShown) std::printf("  and %zu more files\n", result.kinds.size() - kMostShown);
  if (!result.chat_template.empty()) {
    std::printf("  conversations by the template %s, the loss on %s\n", result.chat_template.c_str(),
                options.loss_on == LossOn::assistant ? "what the assistant wrote" : "all of the text");
  }
  if (result.num_altered_documents > 0) {
    std::printf("  %s conversations lost something the assistant wrote: the template drops earlier reasoning\n",
                with_thousands(result.num_altered_documents).c_str());
  }
  if (result.num_empty_records > 0) {
    std::printf("  %s records left out: none of their solutions was verified\n",
                with_thousands(result.num_empty_records).c_str());
  }
  if (result.num_bad_records > 0) {
    std::printf("  %s records left out: not what they should be\n", with_thousands(result.num_bad_records).c_str());
  }
  if (result.num_short_documents > 0) {
    std::printf("  %s documents left out: shorter than %s tokens\n", with_thousands(result.num_short_documents).c_str(),
                with_thousands(std::max<int64_t>(1, options.min_tokens)).c_str());
  }
  if (result.num_repaired_documents > 0) {
    std::printf("  %s documents were not valid UTF-8: the invalid parts became U+FFFD\n",
                with_thousands(result.num_repaired_documents).c_str());
  }
}

}  // namespace

void add_prepare(CLI::App& program) {
  auto options = std::make_shared<PrepareOptions>();
  options->created_by = "dms " DMS_VERSION;
  CLI::App* command = program.add_subcommand("prepare", "Turn text into a token file to train and evaluate on.");
  command->add_option("--tokenizer", options->tokenizer_dir, "Directory with the model's tokenizer.json")
      ->required()
      ->type_name("DIR");
  command->add_option("--out", options->out, "The HDF5 token file to write")->required()->type_name("FILE.h5");
  command
      ->add_option("inputs", options->inputs,
                   "Text files (one document each), .jsonl and Parquet files (texts, messages, ShareGPT, Alpaca, "
                   "OpenR1-Math), plain or gzip; directories of them")
      ->required()
      ->type_name("INPUT...");
  command->add_option("--jobs", options->jobs, "Threads (default: one a processor)")
      ->type_name("N")
      ->check(CLI::Range(1, 1024).description(""));
  command->add_flag("--append-eos", options->append_eos, "End each document with the EOS token");
  command->add_option("--min-tokens", options->min_tokens, "Leave out documents with fewer tokens")
      ->type_name("N")
      ->check(CLI::PositiveNumber.description(""));
  command
      ->add_option("--field", options->records.text_field,
                   "Key of the text in .jsonl and Parquet records (default: what the keys say)")
      ->type_name("KEY");
  command
      ->add_option("--template", options->chat.name,
                   "How conversations become text: auto (the model's own), jinja (the same, never a built-in in its "
                   "place), chatml, llama3, qwen3, r1, r1-raw (R1 without its deleting of the reasoning)")
      ->type_name("NAME")
      ->capture_default_str();
  command->add_option("--date", options->chat.date_string, "The day that templates print, so that data stay the same")
      ->type_name("DATE")
      ->capture_default_str();
  command
      ->add_option("--loss-on", options->loss_on, "Positions of conversations that count: assistant (its words), all")
      ->type_name("WHICH")
      ->transform(
          CLI::CheckedTransformer(std::map<std::string, LossOn>{{"assistant", LossOn::assistant}, {"all", LossOn::all}})
              .description(""));
  command
      ->add_option("--solutions", options->records.solutions,
                   "Of OpenR1-Math's solutions: last-verified (one a problem), verified, all")
      ->type_name("WHICH")
      ->transform(CLI::CheckedTransformer(std::map<std::string, Solutions>{{"last-verified", Solutions::last_verified},
                                                                           {"verified", Solutions::verified},
                                                                           {"all", Solutions::all}})
                      .description(""));
  command->add_flag("--allow-tools", options->records.allow_tools, "Keep tool calls of ShareGPT conversations");
  command->add_option("--skip-bad-records", options->max_bad_records, "Leave out so many records that cannot be read")
      ->type_name("N");
  command->add_flag("--force", options->force, "Replace an existing output file");
  command->footer(
      "Examples:\n  dms prepare --tokenizer model --out train.h5 text/train more.jsonl\n"
      "  dms prepare --tokenizer model --out math.h5 OpenR1-Math-220k/data\n\n"
      "Interrupted, it keeps its finished parts in FILE.h5.parts/; the same command goes on from there.");
  command->callback([options] { run_prepare(*options); });
}

}  // namespace dms
