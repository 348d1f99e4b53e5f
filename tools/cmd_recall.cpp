// dms recall: parse, run, print.
#include <CLI/CLI.hpp>

#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoints/model_dir.h"
#include "data/planted_text.h"
#include "data/sample_order.h"
#include "data/staged_file.h"
#include "data/tokenizer.h"
#include "model/device_weights.h"
#include "recipes/user_error.h"
#include "tools/command_options.h"
#include "tools/commands.h"
#include "trainer/hardware.h"
#include "trainer/model_tokens.h"
#include "trainer/progress_line.h"
#include "trainer/recall.h"
#include "trainer/target_ratio.h"
#include "trainer/trained_adapter.h"

namespace dms {

namespace {

struct Flags {
  std::string model, adapters, json, dtype = "auto", device = "auto";
  std::vector<std::string> data;
  int64_t sequence_length = 2048, texts = 8, facts = 8;
  uint64_t seed = 0;
  bool ignore_base_hash = false;
  TargetRatio target;
};

using Json = nlohmann::ordered_json;

constexpr const char* kMethodKeys[kNumRecallMethods] = {"teacher", "student", "streaming_llm"};
constexpr const char* kMethodNames[kNumRecallMethods] = {"original", "this evictor", "4 sinks + window"};

// Over the facts that `chosen` takes.
struct Recall {
  int64_t facts = 0;
  double recalled[kNumRecallMethods] = {}, nll[kNumRecallMethods] = {};
};
template <class Chosen>
Recall recall_of(const RecallRecord& record, const Chosen& chosen) {
  Recall result;
  for (const RecallRecord::Fact& fact : record.facts) {
    if (!chosen(fact)) continue;
    ++result.facts;
    for (size_t m = 0; m < kNumRecallMethods; ++m) {
      result.recalled[m] += fact.recalled[m] ? 1.0 : 0.0;
      result.nll[m] += fact.answer_nll[m];
    }
  }
  for (size_t m = 0; m < kNumRecallMethods && result.facts > 0; ++m) {
    result.recalled[m] /= static_cast<double>(result.facts);
    result.nll[m] /= static_cast<double>(result.facts);
  }
  return result;
}

Json to_json(const Recall& recall) {
  Json json{{"facts", recall.facts}};
  for (size_t m = 0; m < kNumRecallMethods; ++m) {
    json[kMethodKeys[m]] = {{"recall", recall.recalled[m]}, {"answer_nll", recall.nll[m]}};
  }
  return json;
}

double live_compression(const RecallRecord& record, size_t method) {
  return static_cast<double>(record.live_keys[0]) / static_cast<double>(record.live_keys[method]);
}

Json to_json(const RecallRecord& record, uint64_t seed) {
  const Recall all = recall_of(record, [](const auto&) { return true; });
  Json json{{"texts", record.num_texts}, {"sequence_length", record.length}, {"seed", seed}};
  json["baseline_live_keys"] = record.baseline_live_keys;
  for (size_t m = 0; m < kNumRecallMethods; ++m) {
    json[kMethodKeys[m]] = {{"recall", all.recalled[m]},
                            {"answer_nll", all.nll[m]},
                            {"live_compression", live_compression(record, m)},
                            {"kv_memory_ratio", static_cast<double>(record.allocated_bytes[0]) /
                                                    static_cast<double>(record.allocated_bytes[m])}};
  }
  json["recall_over_teacher"] = all.recalled[0] > 0.0 ? Json(all.recalled[1] / all.recalled[0]) : Json(nullptr);
  json["words"] = to_json(recall_of(record, [](const auto& fact) { return !fact.is_number; }));
  json["numbers"] = to_json(recall_of(record, [](const auto& fact) { return fact.is_number; }));
  json["by_distance"] = Json::array();
  for (int64_t from = 0, to = 64; from < record.length; from = to, to *= 2) {
    const Recall part =
        recall_of(record, [&](const auto& fact) { return fact.distance >= from && fact.distance < to; });
    if (part.facts == 0) continue;
    Json row{{"from", from}, {"to", to}};
    row.update(to_json(part));
    json["by_distance"].push_back(row);
  }
  return json;
}

void print(const RecallRecord& record) {
  const Recall all = recall_of(record, [](const auto&) { return true; });
  std::printf("%ld facts in %ld texts of %ld tokens\n%-18s%10s%14s%18s\n", all.facts, record.num_texts, record.length,
              "", "recalled", "NLL a token", "live compression");
  for (size_t m = 0; m < kNumRecallMethods; ++m) {
    std::printf("%-18s%9.1f%%%14.3f%17.2fx\n", kMethodNames[m], 100.0 * all.recalled[m], all.nll[m],
                live_compression(record, m));
  }
}

std::vector<PlantedText> planted_texts(const Flags& flags, const Architecture& architecture) {
  const auto tokenizer = Tokenizer::load(flags.model);
  std::vector<PlantedText> texts;
  for (const auto& file : open_token_files(flags.data, flags.model, architecture)) {
    const auto windows =
        SampleOrder::evaluation_windows(*file, flags.sequence_length, flags.texts * flags.sequence_length);
    for (const Sample& window : windows) {
      texts.push_back(
          plant_facts(window.tokens, flags.sequence_length, flags.facts, flags.seed + texts.size(), *tokenizer));
    }
  }
  return texts;
}

void run_recall(const Flags& flags) {
  const at::Device device = device_named(flags.device);
  const auto source = on_device(open_weights(flags.model, dtype_named(flags.dtype, device)), device);
  TrainedAdapter trained =
      load_trained_adapter(flags.adapters, *source, flags.ignore_base_hash ? "" : base_model_hash(flags.model));
  const std::vector<PlantedText> texts = planted_texts(flags, source->architecture());
  if (!flags.json.empty()) StagedFile(flags.json);
  move_threshold(flags.target, "--target-ratio", flags.sequence_length, flags.model, *source, trained);
  RecallRecord record;
  {
    ProgressLine progress;
    record = evaluate_recall(*source, *trained.adapter, trained.eviction, texts, [&](int64_t done, int64_t total) {
      progress.update(std::to_string(done) + "/" + std::to_string(total) + " passes", done, total);
    });
  }
  print(record);
  if (!flags.json.empty()) write_file(flags.json, to_json(record, flags.seed).dump(2) + "\n");
}

}  // namespace

void add_recall(CLI::App& program) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = program.add_subcommand(
      "recall", "Ask for words and numbers planted in long texts: the model as it came, evictor, sinks + window.");
  command->add_option("--model", flags->model, "Base model directory")->required()->type_name("DIR");
  command->add_option("--adapters", flags->adapters, "Run, checkpoint or adapter directory")
      ->required()
      ->type_name("DIR");
  command->add_option("--data", flags->data, "Token files that the texts are taken from")
      ->required()
      ->type_name("FILE");
  command->add_option("--sequence-length", flags->sequence_length, "Tokens of a text")
      ->check(CLI::Range(int64_t{64}, int64_t{1} << 24))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--texts", flags->texts, "Texts of each file")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--facts", flags->facts, "Planted in each text, spread over it")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--seed", flags->seed, "Of names, words and numbers")->capture_default_str()->type_name("N");
  add_target_ratio_options(*command, flags->target);
  add_compute_options(*command, flags->dtype, flags->device);
  command->add_option("--json", flags->json, "Write all figures to this file")->type_name("FILE");
  command->add_flag("--ignore-base-hash", flags->ignore_base_hash, "Accept adapters trained on other weights");
  command->footer("Example:\n  dms recall --model model --adapters run --data held-out.h5 --sequence-length 2048");
  command->callback([flags] { run_recall(*flags); });
}

}  // namespace dms
