#include "tools/report_input.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/staged_file.h"
#include "recipes/strict_json.h"
#include "recipes/user_error.h"
#include "recipes/yaml_tree.h"

namespace dms {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Reads members of one JSON object; `where` is the path to it, for messages: "summary.json: sets.perl".
class Object {
 public:
  Object(const json& value, std::string file, std::string path)
      : value_(value), file_(std::move(file)), path_(std::move(path)) {
    if (!value_.is_object()) fail(path_, "an object", value_);
  }

  // kUnknown when absent or null (a number that was not finite).
  double number(const char* key) const {
    const json* member = find(key);
    if (member == nullptr) return kUnknown;
    if (!member->is_number()) fail(name(key), "a number", *member);
    return member->get<double>();
  }

  int64_t integer(const char* key) const {
    const json* member = find(key);
    if (member == nullptr || !member->is_number_integer()) fail(name(key), "an integer", member ? *member : json());
    return member->get<int64_t>();
  }

  std::string text(const char* key) const {
    const json* member = find(key);
    if (member == nullptr) return "";
    if (!member->is_string()) fail(name(key), "a string", *member);
    return member->get<std::string>();
  }

  // Calls visit(element, path) for each element of an array; not at all when absent.
  template <class Visit>
  void each(const char* key, const Visit& visit) const {
    const json* member = find(key);
    if (member == nullptr) return;
    if (!member->is_array()) fail(name(key), "a list", *member);
    for (size_t i = 0; i < member->size(); ++i) visit((*member)[i], name(key) + "[" + std::to_string(i) + "]");
  }

  bool has(const char* key) const { return find(key) != nullptr; }
  Object object(const char* key) const { return Object(*find(key), file_, name(key)); }
  Object element(const json& value, const std::string& path) const { return Object(value, file_, path); }
  const json& value() const { return value_; }

  [[noreturn]] void fail(const std::string& path, const std::string& expected, const json& found) const {
    throw UserError(file_,
                    path.empty() ? "does not hold " + expected
                                 : "'" + path + "' should be " + expected + ", but is " + shown(found),
                    {"this should be the file that `dms eval --json FILE` wrote"});
  }
  std::string name(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }

 private:
  const json* find(const char* key) const {
    const auto member = value_.find(key);
    return member == value_.end() || member->is_null() ? nullptr : &*member;
  }

  const json& value_;
  std::string file_, path_;
};

std::vector<PositionKl> read_positions(const Object& from) {
  std::vector<PositionKl> buckets;
  from.each("kl_mean_by_position", [&](const json& element, const std::string& path) {
    const Object bucket = from.element(element, path);
    buckets.push_back({bucket.integer("from"), bucket.integer("to"), bucket.number("kl_mean")});
  });
  return buckets;
}

std::vector<LastUseKl> read_last_uses(const Object& from) {
  std::vector<LastUseKl> buckets;
  from.each("kl_mean_by_last_use", [&](const json& element, const std::string& path) {
    const Object bucket = from.element(element, path);
    buckets.push_back(
        {bucket.integer("from"), bucket.integer("to"), bucket.integer("tokens"), bucket.number("kl_mean")});
  });
  return buckets;
}

BaselineResult read_baseline(const Object& from, const char* key) {
  if (!from.has(key)) return {};
  const Object baseline = from.object(key);
  return {baseline.number("kl_mean"), baseline.number("kl_mean_second_half"), baseline.number("kv_memory_ratio"),
          read_positions(baseline), read_last_uses(baseline)};
}

std::vector<std::vector<double>> read_keep_rates(const Object& from) {
  std::vector<std::vector<double>> keep_rate_LG;
  from.each("per_layer_head_keep_rate", [&](const json& layer, const std::string& path) {
    if (!layer.is_array()) from.fail(path, "a list of numbers", layer);
    std::vector<double> keep_rate_G;
    for (const json& rate : layer) {
      if (!rate.is_number() && !rate.is_null()) from.fail(path, "a list of numbers", layer);
      keep_rate_G.push_back(rate.is_null() ? kUnknown : rate.get<double>());
    }
    if (!keep_rate_LG.empty() && keep_rate_G.size() != keep_rate_LG[0].size()) {
      from.fail(path, "as long as the first layer's list", layer);
    }
    keep_rate_LG.push_back(std::move(keep_rate_G));
  });
  return keep_rate_LG;
}

EvalResult read_eval(const Object& from) {
  EvalResult eval;
  eval.kl_mean = from.number("kl_mean");
  eval.kl_mean_second_half = from.number("kl_mean_second_half");
  eval.kl_max = from.number("kl_max");
  eval.top1_agreement = from.number("top1_agreement");
  eval.ppl_teacher = from.number("ppl_teacher");
  eval.ppl_student = from.number("ppl_student");
  eval.eviction_rate = from.number("eviction_rate");
  eval.kv_memory_ratio = from.number("kv_memory_ratio");
  eval.kv_read_ratio = from.number("kv_read_ratio");
  eval.noise_floor_kl = from.number("noise_floor_kl");
  eval.kv_live_ratio = from.number("kv_live_ratio");
  eval.target_ratio = from.number("target_ratio");
  eval.ratio_drift = from.number("ratio_drift");
  eval.tokens = from.number("tokens");
  eval.sequence_length = from.number("sequence_length");
  eval.window = from.number("window");
  eval.wall_seconds = from.number("wall_seconds");
  eval.adapter = from.text("adapter");
  eval.sliding_window = read_baseline(from, "sliding_window");
  eval.streaming_llm = read_baseline(from, "streaming_llm");
  eval.kl_by_position = read_positions(from);
  eval.kl_by_last_use = read_last_uses(from);
  eval.keep_rate_LG = read_keep_rates(from);
  from.each("memory_by_length", [&](const json& element, const std::string& path) {
    const Object point = from.element(element, path);
    eval.memory_by_length.push_back(
        {point.integer("tokens"), point.number("dense_bytes"), point.number("allocated_bytes")});
  });
  if (from.has("sample")) {
    const Object sample = from.object("sample");
    eval.sample_heads_total = sample.integer("heads_total");
    if (eval.sample_heads_total < 1) {
      from.fail("sample.heads_total", "at least 1", json(eval.sample_heads_total));
    }
    sample.each("tokens", [&](const json& element, const std::string& path) {
      const Object token = sample.element(element, path);
      eval.sample.push_back({token.text("text"), token.integer("kept_heads")});
    });
  }
  if (from.has("sets")) {
    const Object sets = from.object("sets");
    for (const auto& [name, set] : sets.value().items()) {
      eval.sets.emplace_back(name, read_eval(sets.element(set, sets.name(name))));
    }
  }
  for (const char* key : {"kl_mean", "kv_memory_ratio"}) {
    if (!from.has(key)) from.fail(from.name(key), "a number", json());
  }
  return eval;
}

// The node at a dotted path of a recipe, or nullptr.
const YamlNode* find(const YamlNode& root, std::string_view dotted) {
  const YamlNode* node = &root;
  while (!dotted.empty()) {
    const std::string_view key = dotted.substr(0, dotted.find('.'));
    dotted.remove_prefix(std::min(dotted.size(), key.size() + 1));
    const YamlNode* next = nullptr;
    for (const auto& [name, value] : node->entries) {
      if (name->text == key) next = value.get();
    }
    if (next == nullptr) return nullptr;
    node = next;
  }
  return node;
}

std::string text_at(const YamlNode& root, std::string_view dotted) {
  const YamlNode* node = find(root, dotted);
  return node == nullptr ? "" : node->text;
}

int64_t integer_at(const YamlNode& root, std::string_view dotted) {
  const std::string text = text_at(root, dotted);
  int64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

// The options are looked up, not validated: a run of an older version, whose recipe this one would refuse, can still
// be reported.
void read_recipe(const std::string& path, ReportInput& input) {
  input.recipe = read_file(path);
  const YamlNode::Pointer root = parse_yaml_tree(path, input.recipe);
  input.model_path = text_at(*root, "model.path");
  if (const YamlNode* held_out = find(*root, "data.held_out")) {
    for (const YamlNode::Pointer& item : held_out->items) input.held_out_paths.push_back(item->text);
  }
  input.adapter_kind = text_at(*root, "adapter.kind");
  input.window = integer_at(*root, "eviction.window");
  input.planned_steps = integer_at(*root, "trainer.steps");
  input.warm_start_tokens = integer_at(*root, "warm_start.tokens");
  input.tokens_per_step = integer_at(*root, "trainer.global_batch") * integer_at(*root, "trainer.sequence_length");
}

// The base model's name as the newest checkpoint has it, or "".
std::string base_model_of(const std::string& run_dir) {
  fs::path newest;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(run_dir + "/checkpoints", error)) {
    if (fs::exists(entry.path() / "dms_config.json") && entry.path() > newest) newest = entry.path();
  }
  if (newest.empty()) return "";
  const json config = read_json_object((newest / "dms_config.json").string());
  const auto name = config.find("base_model");
  return name != config.end() && name->is_string() ? name->get<std::string>() : "";
}

std::string last_component(const std::string& path) {
  const fs::path normal = fs::path(path).lexically_normal();
  return (normal.has_filename() ? normal : normal.parent_path()).filename().string();
}

}  // namespace

EvalResult parse_eval(std::string_view json_text, const std::string& where) {
  const json value = parse_strict_json(json_text, where);
  return read_eval(Object(value, where, ""));
}

ReportInput read_report_input(const std::string& run_dir, const std::string& eval_path, std::string model_name) {
  ReportInput input;
  input.run_dir = run_dir;
  input.eval_path = eval_path;
  const std::string recipe_path = run_dir + "/recipe.yaml";
  if (!fs::exists(recipe_path)) {
    throw UserError(
        "--run " + run_dir,
        fs::is_directory(run_dir) ? "is not a run directory: it has no recipe.yaml" : "there is no such directory",
        {"expected what `dms train RECIPE.yaml --run-dir DIR` made"});
  }
  read_recipe(recipe_path, input);
  input.metrics = read_metrics(run_dir);
  if (!eval_path.empty()) {
    input.eval = parse_eval(read_file(eval_path), eval_path);
    input.has_eval = true;
  }
  if (model_name.empty()) model_name = base_model_of(run_dir);
  if (model_name.empty()) model_name = last_component(input.model_path);
  input.model_name = model_name.empty() ? "A language model" : model_name;
  return input;
}

}  // namespace dms
