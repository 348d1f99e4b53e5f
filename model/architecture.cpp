#include "model/architecture.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>

#include "recipes/strict_json.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

using nlohmann::json;

// Bounds on dimensions.  Together they keep every product in this project far from 2^63.
constexpr int64_t kMaxLayers = int64_t{1} << 14;
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxVocabulary = int64_t{1} << 28;
constexpr int64_t kMaxPositions = int64_t{1} << 40;

std::string list_of(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

// One JSON object of a config.json, read key by key with errors that name the key.
class ConfigReader {
 public:
  ConfigReader(const json& object, std::string where, std::string prefix = "")
      : object_(object), where_(std::move(where)), prefix_(std::move(prefix)) {}

  const std::string& where() const { return where_; }

  // nullptr when absent.
  const json* find(const std::string& key) const {
    const auto it = object_.find(key);
    return it == object_.end() ? nullptr : &*it;
  }
  // nullptr when absent or null.
  const json* find_value(const std::string& key) const {
    const json* value = find(key);
    return value == nullptr || value->is_null() ? nullptr : value;
  }

  [[noreturn]] void reject(const std::string& key, const std::string& expected) const {
    throw UserError(where_, "'" + prefix_ + key + "' is " + shown(object_.at(key)), {"expected " + expected});
  }

  int64_t integer(const std::string& key, int64_t min, int64_t max) const {
    require(key);
    const json& value = object_.at(key);
    const std::string expected = "an integer from " + std::to_string(min) + " to " + std::to_string(max);
    if (!value.is_number_integer()) reject(key, expected);
    const bool huge = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(max);
    if (huge || value.get<int64_t>() < min || value.get<int64_t>() > max) reject(key, expected);
    return value.get<int64_t>();
  }

  double positive_real(const std::string& key, const std::string& expected = "a positive number") const {
    require(key);
    const json& value = object_.at(key);
    if (!value.is_number() || !(value.get<double>() > 0) || !std::isfinite(value.get<double>())) {
      reject(key, expected);
    }
    return value.get<double>();
  }

  bool flag(const std::string& key, bool if_absent) const {
    const json* value = find_value(key);
    if (value == nullptr) return if_absent;
    if (!value->is_boolean()) reject(key, "true or false");
    return value->get<bool>();
  }

  std::string text(const std::string& key) const {
    require(key);
    if (!object_.at(key).is_string()) reject(key, "a string");
    return object_.at(key).get<std::string>();
  }

  void require(const std::string& key) const {
    if (find(key) != nullptr) return;
    std::vector<std::string> present;
    for (const auto& item : object_.items()) present.push_back(item.key());
    std::vector<std::string> details;
    const std::string near = nearest_name(key, present);
    if (!near.empty()) details.push_back("the nearest key in the file is " + in_quotes(near));
    throw UserError(where_, "the key '" + prefix_ + key + "' is missing", details);
  }

 private:
  const json& object_;
  std::string where_;
  std::string prefix_;  // of nested keys in messages: "rope_scaling."
};

Family find_family(const ConfigReader& config, const std::string& where) {
  const std::string model_type = config.text("model_type");
  std::vector<std::string> supported;
  const Family* found = nullptr;
  for (const Family& family : families()) {
    supported.push_back(family.model_type);
    if (family.model_type == model_type) found = &family;
  }
  if (found == nullptr) {
    std::vector<std::string> details = {"supported: " + list_of(supported)};
    const std::string hint = did_you_mean(model_type, supported);
    if (!hint.empty()) details.push_back(hint);
    throw UserError(where, "unsupported model family: 'model_type' is " + in_quotes(model_type), details);
  }
  if (const json* classes = config.find_value("architectures")) {
    const std::string expected = "[\"" + found->class_name + "\"] for model_type " + model_type;
    if (!classes->is_array() || classes->empty() || !classes->front().is_string()) {
      config.reject("architectures", expected);
    }
    if (classes->front().get<std::string>() != found->class_name) config.reject("architectures", expected);
  }
  return *found;
}

// What the forward pass has no code for: better refused here than silently computed without.
void reject_unsupported_features(const ConfigReader& config, const Architecture& model, const std::string& where) {
  if (const json* act = config.find_value("hidden_act"); act != nullptr && *act != "silu") {
    config.reject("hidden_act", "\"silu\"");
  }
  // Qwen2 has its q, k, v biases whatever this key says.
  if (config.flag("attention_bias", false) && !model.family.qkv_bias) {
    config.reject("attention_bias", "false: biased attention projections are not supported in this family");
  }
  if (config.flag("mlp_bias", false)) config.reject("mlp_bias", "false: biased MLPs are not supported");
  if (config.flag("rope_interleaved", false)) config.reject("rope_interleaved", "false");
  if (config.flag("use_sliding_window", false)) {
    config.reject("use_sliding_window", "false: layers with sliding-window attention are not supported");
  }
  if (config.find_value("partial_rotary_factor") && config.positive_real("partial_rotary_factor") != 1.0) {
    config.reject("partial_rotary_factor", "1: RoPE over a part of the head is not supported");
  }
  if (config.find_value("pretraining_tp") && config.integer("pretraining_tp", 0, 1 << 20) > 1) {
    config.reject("pretraining_tp", "1");
  }
  if (const json* types = config.find_value("layer_types")) {
    const std::string expected = std::to_string(model.num_layers) + " times \"full_attention\"";
    if (!types->is_array()) config.reject("layer_types", expected);
    for (size_t i = 0; i < types->size(); ++i) {
      if ((*types)[i] != "full_attention") {
        throw UserError(where, "'layer_types[" + std::to_string(i) + "]' is " + shown((*types)[i]),
                        {"expected " + expected});
      }
    }
    if (static_cast<int64_t>(types->size()) != model.num_layers) {
      throw UserError(where, "'layer_types' has " + std::to_string(types->size()) + " entries",
                      {"expected " + expected});
    }
  }
  if (config.find_value("quantization_config")) {
    throw UserError(where, "'quantization_config' is set: the weights are quantised",
                    {"expected a model stored in BF16, F16 or F32: use the original, unquantised release"});
  }
}

constexpr std::pair<const char*, RopeType> kScaledRopes[] = {
    {"linear", RopeType::linear}, {"llama3", RopeType::llama3}, {"yarn", RopeType::yarn}};

// The length that the frequencies were trained for: a key of the model itself wins over the scaling's, as in the
// reference, and the model's whole length stands in for both.
int64_t original_max_position(const ConfigReader& config, const ConfigReader& rope_config) {
  constexpr const char* kKey = "original_max_position_embeddings";
  if (config.find_value(kKey)) return config.integer(kKey, 1, kMaxPositions);
  if (rope_config.find(kKey) || !config.find_value("max_position_embeddings")) {
    return rope_config.integer(kKey, 1, kMaxPositions);
  }
  return config.integer("max_position_embeddings", 1, kMaxPositions);
}

void parse_llama3(const ConfigReader& rope_config, RopeScaling& rope) {
  rope.low_freq_factor = rope_config.positive_real("low_freq_factor");
  rope.high_freq_factor = rope_config.positive_real("high_freq_factor");
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    rope_config.reject("high_freq_factor",
                       "more than low_freq_factor, which is " + shown(*rope_config.find("low_freq_factor")));
  }
}

// Peng et al. 2023 (arXiv 2309.00071), with the attention factor of transformers' modeling_rope_utils: DeepSeek's
// mscale and mscale_all_dim count only together, and zeros count as absent.
void parse_yarn(const ConfigReader& rope_config, RopeScaling& rope) {
  const auto real_or = [&](const char* key, double if_absent) {
    const json* value = rope_config.find_value(key);
    return value == nullptr || *value == 0 ? if_absent : rope_config.positive_real(key);
  };
  rope.beta_fast = real_or("beta_fast", 32.0);
  rope.beta_slow = real_or("beta_slow", 1.0);
  if (rope.beta_fast < rope.beta_slow) {
    throw UserError(rope_config.where(), "yarn's beta_fast is less than its beta_slow",
                    {"expected beta_fast >= beta_slow; without the keys they are 32 and 1"});
  }
  rope.truncate = rope_config.flag("truncate", true);
  const double mscale = real_or("mscale", 0.0), mscale_all_dim = real_or("mscale_all_dim", 0.0);
  const auto factor_of = [&](double scale) {
    return rope.factor <= 1.0 ? 1.0 : 0.1 * scale * std::log(rope.factor) + 1.0;
  };
  if (rope_config.find_value("attention_factor")) {
    rope.attention_factor = rope_config.positive_real("attention_factor");
  } else if (mscale > 0.0 && mscale_all_dim > 0.0) {
    rope.attention_factor = factor_of(mscale) / factor_of(mscale_all_dim);
  } else {
    rope.attention_factor = factor_of(1.0);
  }
}

// transformers 4 writes rope_theta and rope_scaling; 5 writes rope_parameters and still reads the others, a non-null
// rope_scaling replacing every entry of rope_parameters but the theta.
RopeScaling parse_rope(const ConfigReader& config, const std::string& where) {
  const auto section = [&](const std::string& key) -> const json* {
    const json* value = config.find_value(key);
    if (value != nullptr && !value->is_object()) config.reject(key, "an object or null");
    return value != nullptr && !value->empty() ? value : nullptr;
  };
  const json* scaling = section("rope_scaling");
  const json* parameters = section("rope_parameters");
  const std::string name = scaling != nullptr ? "rope_scaling" : "rope_parameters";
  const json none = json::object();
  const json& entries = scaling != nullptr ? *scaling : parameters != nullptr ? *parameters : none;
  const ConfigReader rope_config(entries, where, name + ".");

  RopeScaling rope;
  if (scaling != nullptr && scaling->contains("rope_theta")) {
    rope.theta = rope_config.positive_real("rope_theta");
  } else if (parameters != nullptr && parameters->contains("rope_theta")) {
    rope.theta = ConfigReader(*parameters, where, "rope_parameters.").positive_real("rope_theta");
  } else if (config.find("rope_theta")) {
    rope.theta = config.positive_real("rope_theta");
  }

  std::string type = "default";
  if (rope_config.find("rope_type")) {
    type = rope_config.text("rope_type");
  } else if (rope_config.find("type")) {
    type = rope_config.text("type");
  } else if (scaling != nullptr) {
    rope_config.require("rope_type");
  }
  for (const auto& entry : entries.items()) {
    if (entry.value().is_object()) {
      rope_config.reject(entry.key(), "a plain value: RoPE that differs between layers is not supported");
    }
  }
  if (rope_config.find_value("partial_rotary_factor") && rope_config.positive_real("partial_rotary_factor") != 1.0) {
    rope_config.reject("partial_rotary_factor", "1: RoPE over a part of the head is not supported");
  }
  if (type == "default") return rope;
  const auto known = std::find_if(std::begin(kScaledRopes), std::end(kScaledRopes),
                                  [&](const auto& candidate) { return type == candidate.first; });
  if (known == std::end(kScaledRopes)) {
    throw UserError(where, "'" + name + ".rope_type' is " + in_quotes(type),
                    {"supported: default, linear, llama3, yarn"});
  }
  rope.type = known->second;
  if (rope.type != RopeType::linear) rope.original_max_position = original_max_position(config, rope_config);
  if (rope.type == RopeType::yarn && rope_config.find("factor") && !rope_config.find_value("factor")) {
    // The reference's reading of an explicit null.
    rope.factor = static_cast<double>(config.integer("max_position_embeddings", 1, kMaxPositions)) /
                  static_cast<double>(rope.original_max_position);
  } else {
    rope.factor = rope_config.positive_real("factor");
    if (rope.factor < 1.0) rope_config.reject("factor", "a number of at least 1");
  }
  if (rope.type == RopeType::llama3) parse_llama3(rope_config, rope);
  if (rope.type == RopeType::yarn) parse_yarn(rope_config, rope);
  return rope;
}

void parse_heads(const ConfigReader& config, const std::string& where, Architecture& model) {
  model.num_heads = config.integer("num_attention_heads", 1, kMaxWidth);
  if (config.find_value("num_key_value_heads")) {
    model.num_kv_heads = config.integer("num_key_value_heads", 1, kMaxWidth);
  } else {
    // An explicit null means "as many as query heads" in every family; only absence means the family's default.
    const bool absent = config.find("num_key_value_heads") == nullptr;
    const int64_t family_default = absent ? model.family.default_kv_heads : 0;
    model.num_kv_heads = family_default != 0 ? family_default : model.num_heads;
  }
  if (model.num_heads % model.num_kv_heads != 0) {
    throw UserError(where,
                    "'num_attention_heads' is " + std::to_string(model.num_heads) + " and 'num_key_value_heads' is " +
                        std::to_string(model.num_kv_heads),
                    {"expected the second to divide the first"});
  }

  const bool derived = model.family.default_head_dim == 0;  // D / H when absent or null
  if (derived ? config.find_value("head_dim") != nullptr : config.find("head_dim") != nullptr) {
    model.head_dim = config.integer("head_dim", 2, kMaxWidth);
  } else if (!derived) {
    model.head_dim = model.family.default_head_dim;
  } else if (model.hidden_size % model.num_heads == 0) {
    model.head_dim = model.hidden_size / model.num_heads;
  } else {
    throw UserError(where,
                    "'hidden_size' is " + std::to_string(model.hidden_size) + ", which 'num_attention_heads' (" +
                        std::to_string(model.num_heads) + ") does not divide, and 'head_dim' is not given",
                    {"expected 'head_dim', or a hidden size that is a multiple of the number of heads"});
  }
  if (model.head_dim % 2 != 0) {
    throw UserError(where, "the head dimension is " + std::to_string(model.head_dim),
                    {"expected an even number: RoPE rotates pairs of channels"});
  }
  if (model.num_heads > kMaxWidth / model.head_dim) {
    throw UserError(where,
                    "'num_attention_heads' times the head dimension is " + std::to_string(model.num_heads) + " * " +
                        std::to_string(model.head_dim),
                    {"expected a product of at most " + std::to_string(kMaxWidth)});
  }
}

}  // namespace

const std::vector<Family>& families() {
  static const std::vector<Family> all = {
      {.model_type = "llama", .class_name = "LlamaForCausalLM"},
      {.model_type = "qwen2", .class_name = "Qwen2ForCausalLM", .qkv_bias = true, .default_kv_heads = 32},
      {.model_type = "qwen3",
       .class_name = "Qwen3ForCausalLM",
       .qk_norm = true,
       .default_kv_heads = 32,
       .default_head_dim = 128},
  };
  return all;
}

int64_t Architecture::num_parameters() const {
  int64_t total = 0;
  for (const TensorSpec& tensor : expected_tensors(*this)) {
    int64_t num_elements = 1;
    for (const int64_t dimension : tensor.shape) num_elements *= dimension;
    total += num_elements;
  }
  return total;
}

Architecture parse_architecture(std::string_view config_json, const std::string& where) {
  const json object = parse_strict_json(config_json, where);
  if (!object.is_object()) throw UserError(where, "holds " + shown(object), {"expected a JSON object {...}"});
  const ConfigReader config(object, where);

  Architecture model;
  model.family = find_family(config, where);
  model.hidden_size = config.integer("hidden_size", 1, kMaxWidth);
  model.num_layers = config.integer("num_hidden_layers", 1, kMaxLayers);
  model.intermediate_size = config.integer("intermediate_size", 1, kMaxWidth);
  model.vocab_size = config.integer("vocab_size", 1, kMaxVocabulary);
  parse_heads(config, where, model);
  if (config.find_value("max_position_embeddings")) {
    model.max_positions = config.integer("max_position_embeddings", 1, kMaxPositions);
  }
  if (config.find("rms_norm_eps")) model.rms_norm_eps = config.positive_real("rms_norm_eps");
  model.tied_embeddings = config.flag("tie_word_embeddings", false);
  model.rope = parse_rope(config, where);
  reject_unsupported_features(config, model, where);
  return model;
}

std::vector<TensorSpec> expected_tensors(const Architecture& architecture) {
  const int64_t D = architecture.hidden_size, I = architecture.intermediate_size, V = architecture.vocab_size;
  const int64_t d = architecture.head_dim;
  const int64_t Hd = architecture.num_heads * d, Gd = architecture.num_kv_heads * d;
  std::vector<TensorSpec> tensors = {{"model.embed_tokens.weight", {V, D}}};
  for (int64_t i = 0; i < architecture.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    tensors.push_back({layer + "input_layernorm.weight", {D}});
    tensors.push_back({layer + "self_attn.q_proj.weight", {Hd, D}});
    tensors.push_back({layer + "self_attn.k_proj.weight", {Gd, D}});
    tensors.push_back({layer + "self_attn.v_proj.weight", {Gd, D}});
    tensors.push_back({layer + "self_attn.o_proj.weight", {D, Hd}});
    if (architecture.family.qkv_bias) {
      tensors.push_back({layer + "self_attn.q_proj.bias", {Hd}});
      tensors.push_back({layer + "self_attn.k_proj.bias", {Gd}});
      tensors.push_back({layer + "self_attn.v_proj.bias", {Gd}});
    }
    if (architecture.family.qk_norm) {
      tensors.push_back({layer + "self_attn.q_norm.weight", {d}});
      tensors.push_back({layer + "self_attn.k_norm.weight", {d}});
    }
    tensors.push_back({layer + "post_attention_layernorm.weight", {D}});
    tensors.push_back({layer + "mlp.gate_proj.weight", {I, D}});
    tensors.push_back({layer + "mlp.up_proj.weight", {I, D}});
    tensors.push_back({layer + "mlp.down_proj.weight", {D, I}});
  }
  tensors.push_back({"model.norm.weight", {D}});
  if (!architecture.tied_embeddings) tensors.push_back({"lm_head.weight", {V, D}});
  return tensors;
}

}  // namespace dms
