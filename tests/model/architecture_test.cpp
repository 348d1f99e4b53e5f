#include "model/architecture.h"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "tests/support/user_error_of.h"

namespace dms {
namespace {

using nlohmann::json;

// The config.json of released models, key for key.
constexpr const char* kQwen3_8B = R"({
  "architectures": ["Qwen3ForCausalLM"],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "bos_token_id": 151643,
  "eos_token_id": 151645,
  "head_dim": 128,
  "hidden_act": "silu",
  "hidden_size": 4096,
  "initializer_range": 0.02,
  "intermediate_size": 12288,
  "max_position_embeddings": 40960,
  "max_window_layers": 36,
  "model_type": "qwen3",
  "num_attention_heads": 32,
  "num_hidden_layers": 36,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06,
  "rope_scaling": null,
  "rope_theta": 1000000,
  "sliding_window": null,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.51.0",
  "use_cache": true,
  "use_sliding_window": false,
  "vocab_size": 151936
})";

constexpr const char* kR1DistillQwen_7B = R"({
  "architectures": ["Qwen2ForCausalLM"],
  "attention_dropout": 0.0,
  "bos_token_id": 151643,
  "eos_token_id": 151643,
  "hidden_act": "silu",
  "hidden_size": 3584,
  "initializer_range": 0.02,
  "intermediate_size": 18944,
  "max_position_embeddings": 131072,
  "max_window_layers": 28,
  "model_type": "qwen2",
  "num_attention_heads": 28,
  "num_hidden_layers": 28,
  "num_key_value_heads": 4,
  "rms_norm_eps": 1e-06,
  "rope_theta": 10000,
  "sliding_window": 4096,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.44.0",
  "use_cache": true,
  "use_mrope": false,
  "use_sliding_window": false,
  "vocab_size": 152064
})";

constexpr const char* kLlama3_2_1B = R"({
  "architectures": ["LlamaForCausalLM"],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "bos_token_id": 128000,
  "eos_token_id": [128001, 128008, 128009],
  "head_dim": 64,
  "hidden_act": "silu",
  "hidden_size": 2048,
  "initializer_range": 0.02,
  "intermediate_size": 8192,
  "max_position_embeddings": 131072,
  "mlp_bias": false,
  "model_type": "llama",
  "num_attention_heads": 32,
  "num_hidden_layers": 16,
  "num_key_value_heads": 8,
  "pretraining_tp": 1,
  "rms_norm_eps": 1e-05,
  "rope_scaling": {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3"
  },
  "rope_theta": 500000.0,
  "tie_word_embeddings": true,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.45.0.dev0",
  "use_cache": true,
  "vocab_size": 128256
})";

constexpr const char* kSmolLM2_135M = R"({
  "architectures": ["LlamaForCausalLM"],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "hidden_act": "silu",
  "hidden_size": 576,
  "initializer_range": 0.041666666666666664,
  "intermediate_size": 1536,
  "is_llama_config": true,
  "max_position_embeddings": 8192,
  "mlp_bias": false,
  "model_type": "llama",
  "num_attention_heads": 9,
  "num_hidden_layers": 30,
  "num_key_value_heads": 3,
  "pad_token_id": 2,
  "pretraining_tp": 1,
  "rms_norm_eps": 1e-05,
  "rope_interleaved": false,
  "rope_scaling": null,
  "rope_theta": 100000,
  "tie_word_embeddings": true,
  "torch_dtype": "bfloat16",
  "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
  "transformers_version": "4.42.3",
  "use_cache": true,
  "vocab_size": 49152
})";

Architecture parse(const json& config) { return parse_architecture(config.dump(), "config.json"); }
std::string parse_error(const std::string& text) {
  return user_error_of([&] { parse_architecture(text, "m/config.json"); });
}

TEST(Architecture, ReleasedConfigsAreRead) {
  const Architecture qwen3 = parse_architecture(kQwen3_8B, "config.json");
  EXPECT_EQ(qwen3.num_parameters(), 8'190'735'360);
  EXPECT_TRUE(qwen3.family.qk_norm && !qwen3.family.qkv_bias && !qwen3.tied_embeddings);
  EXPECT_EQ(qwen3.group_size(), 4);
  EXPECT_EQ(qwen3.rope.type, RopeType::plain);
  EXPECT_EQ(qwen3.rope.theta, 1e6);
  EXPECT_EQ(qwen3.rms_norm_eps, 1e-6);
  EXPECT_EQ(qwen3.max_positions, 40960);

  const Architecture r1 = parse_architecture(kR1DistillQwen_7B, "config.json");
  EXPECT_EQ(r1.num_parameters(), 7'615'616'512);
  EXPECT_TRUE(r1.family.qkv_bias && !r1.family.qk_norm && !r1.tied_embeddings);
  EXPECT_EQ(r1.head_dim, 128);  // derived: 3584 / 28
  EXPECT_EQ(r1.group_size(), 7);
  EXPECT_EQ(r1.rope.theta, 1e4);

  const Architecture llama = parse_architecture(kLlama3_2_1B, "config.json");
  EXPECT_EQ(llama.num_parameters(), 1'235'814'400);
  EXPECT_TRUE(llama.tied_embeddings && !llama.family.qkv_bias && !llama.family.qk_norm);
  EXPECT_EQ(llama.rope.type, RopeType::llama3);
  EXPECT_EQ(llama.rope.theta, 5e5);
  EXPECT_EQ(llama.rope.factor, 32);
  EXPECT_EQ(llama.rope.low_freq_factor, 1);
  EXPECT_EQ(llama.rope.high_freq_factor, 4);
  EXPECT_EQ(llama.rope.original_max_position, 8192);
  EXPECT_EQ(llama.rms_norm_eps, 1e-5);

  const Architecture smol = parse_architecture(kSmolLM2_135M, "config.json");
  EXPECT_EQ(smol.num_parameters(), 134'515'008);
  EXPECT_EQ(smol.head_dim, 64);
  EXPECT_EQ(smol.group_size(), 3);
  EXPECT_EQ(smol.vocab_size, 49152);
  EXPECT_EQ(smol.rope.theta, 1e5);
}

TEST(Architecture, ParameterCountsOfAllTargetModels) {
  struct Row {
    const char* name;
    const char* family;
    int64_t L, D, H, G, d, I, V;
    bool tied;
    int64_t parameters;
  };
  const Row rows[] = {
      {"SmolLM2-135M", "llama", 30, 576, 9, 3, 64, 1536, 49152, true, 134'515'008},
      {"Llama-3.2-1B", "llama", 16, 2048, 32, 8, 64, 8192, 128256, true, 1'235'814'400},
      {"Llama-3.2-3B", "llama", 28, 3072, 24, 8, 128, 8192, 128256, true, 3'212'749'824},
      {"Qwen3-0.6B", "qwen3", 28, 1024, 16, 8, 128, 3072, 151936, true, 596'049'920},
      {"Qwen3-1.7B", "qwen3", 28, 2048, 16, 8, 128, 6144, 151936, true, 1'720'574'976},
      {"Qwen3-4B", "qwen3", 36, 2560, 32, 8, 128, 9728, 151936, true, 4'022'468'096},
      {"Qwen3-8B", "qwen3", 36, 4096, 32, 8, 128, 12288, 151936, false, 8'190'735'360},
      {"Qwen3-14B", "qwen3", 40, 5120, 40, 8, 128, 17408, 151936, false, 14'768'307'200},
      {"Qwen3-32B", "qwen3", 64, 5120, 64, 8, 128, 25600, 151936, false, 32'762'123'264},
      {"R1-Distill-Qwen-1.5B", "qwen2", 28, 1536, 12, 2, 128, 8960, 151936, false, 1'777'088'000},
      {"R1-Distill-Qwen-7B", "qwen2", 28, 3584, 28, 4, 128, 18944, 152064, false, 7'615'616'512},
      {"R1-Distill-Qwen-14B", "qwen2", 48, 5120, 40, 8, 128, 13824, 152064, false, 14'770'033'664},
      {"R1-Distill-Qwen-32B", "qwen2", 64, 5120, 40, 8, 128, 27648, 152064, false, 32'763'876'352},
  };
  for (const Row& row : rows) {
    const json config = {
        {"model_type", row.family},     {"hidden_size", row.D},         {"num_hidden_layers", row.L},
        {"num_attention_heads", row.H}, {"num_key_value_heads", row.G}, {"head_dim", row.d},
        {"intermediate_size", row.I},   {"vocab_size", row.V},          {"tie_word_embeddings", row.tied}};
    EXPECT_EQ(parse(config).num_parameters(), row.parameters) << row.name;
  }
}

TEST(Architecture, TensorNamesAndShapesFollowTheFamily) {
  const auto shapes = [](const std::string& text) {
    std::map<std::string, std::vector<int64_t>> found;
    for (const TensorSpec& tensor : expected_tensors(parse_architecture(text, ""))) found[tensor.name] = tensor.shape;
    return found;
  };
  using Shape = std::vector<int64_t>;
  auto qwen3 = shapes(kQwen3_8B);
  EXPECT_EQ(qwen3.size(), 36u * 11 + 3);
  EXPECT_EQ(qwen3.at("model.layers.35.self_attn.q_norm.weight"), Shape{128});
  EXPECT_EQ(qwen3.at("model.layers.35.self_attn.k_norm.weight"), Shape{128});
  EXPECT_EQ(qwen3.at("model.layers.0.self_attn.k_proj.weight"), (Shape{1024, 4096}));
  EXPECT_EQ(qwen3.at("lm_head.weight"), (Shape{151936, 4096}));
  json wide_heads = json::parse(kQwen3_8B);  // H * d = 8192, as in Qwen3-32B, is not D
  wide_heads["num_attention_heads"] = 64;
  EXPECT_EQ(shapes(wide_heads.dump()).at("model.layers.0.self_attn.q_proj.weight"), (Shape{8192, 4096}));
  EXPECT_EQ(shapes(wide_heads.dump()).at("model.layers.0.self_attn.o_proj.weight"), (Shape{4096, 8192}));
  auto r1 = shapes(kR1DistillQwen_7B);
  EXPECT_EQ(r1.size(), 28u * 12 + 3);
  EXPECT_EQ(r1.at("model.layers.27.self_attn.q_proj.bias"), Shape{3584});
  EXPECT_EQ(r1.at("model.layers.27.self_attn.k_proj.bias"), Shape{512});
  EXPECT_EQ(r1.at("model.layers.27.self_attn.v_proj.bias"), Shape{512});
  EXPECT_FALSE(r1.contains("model.layers.0.self_attn.o_proj.bias"));
  auto smol = shapes(kSmolLM2_135M);
  EXPECT_EQ(smol.size(), 30u * 9 + 2);
  EXPECT_FALSE(smol.contains("lm_head.weight"));
  EXPECT_EQ(smol.at("model.layers.29.mlp.down_proj.weight"), (Shape{576, 1536}));
  EXPECT_EQ(smol.at("model.layers.29.self_attn.o_proj.weight"), (Shape{576, 576}));
}

TEST(Architecture, DefaultsAreThoseOfTheFamily) {
  json llama = json::parse(kSmolLM2_135M);
  llama.erase("num_key_value_heads");
  EXPECT_EQ(parse(llama).num_kv_heads, 9);
  llama["num_key_value_heads"] = nullptr;
  llama["head_dim"] = nullptr;
  llama.erase("rms_norm_eps");
  llama.erase("tie_word_embeddings");
  llama.erase("max_position_embeddings");
  llama.erase("architectures");
  const Architecture smol = parse(llama);
  EXPECT_EQ(smol.num_kv_heads, 9);
  EXPECT_EQ(smol.head_dim, 64);
  EXPECT_EQ(smol.rms_norm_eps, 1e-6);
  EXPECT_FALSE(smol.tied_embeddings);
  EXPECT_EQ(smol.max_positions, 0);

  json qwen3 = json::parse(kQwen3_8B);
  qwen3.erase("head_dim");
  qwen3["hidden_size"] = 1024;
  qwen3["num_attention_heads"] = 64;
  qwen3.erase("num_key_value_heads");
  EXPECT_EQ(parse(qwen3).head_dim, 128);  // never D / H
  EXPECT_EQ(parse(qwen3).num_kv_heads, 32);
  qwen3["num_key_value_heads"] = nullptr;
  EXPECT_EQ(parse(qwen3).num_kv_heads, 64);

  json qwen2 = json::parse(kR1DistillQwen_7B);
  qwen2["attention_bias"] = true;  // ignored: q, k, v are always biased, o never
  EXPECT_EQ(parse(qwen2).num_parameters(), 7'615'616'512);
}

TEST(Architecture, BothGenerationsOfRopeKeysAreRead) {
  const json llama3 = json::parse(kLlama3_2_1B)["rope_scaling"];
  const auto rope = [](const json& changes) {
    json config = json::parse(kSmolLM2_135M);
    config.erase("rope_theta");
    config.erase("rope_scaling");
    config.update(changes);
    return parse(config).rope;
  };
  json with_theta = llama3;
  with_theta["rope_theta"] = 7.0;

  EXPECT_EQ(rope(json::object()).theta, 10000);
  EXPECT_EQ(rope({{"rope_theta", 5}}).theta, 5);
  EXPECT_EQ(rope({{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 6.0}}}}).theta, 6);
  EXPECT_EQ(rope({{"rope_parameters", {{"rope_theta", 6.0}}}, {"rope_theta", 5}}).theta, 6);
  EXPECT_EQ(rope({{"rope_parameters", nullptr}, {"rope_theta", 5}}).theta, 5);
  EXPECT_EQ(rope({{"rope_scaling", json::object()}, {"rope_theta", 5}}).type, RopeType::plain);

  const RopeScaling five = rope({{"rope_parameters", with_theta}});  // as transformers 5 saves Llama 3
  EXPECT_EQ(five.type, RopeType::llama3);
  EXPECT_EQ(five.theta, 7);
  EXPECT_EQ(five.factor, 32);
  EXPECT_EQ(five.original_max_position, 8192);
  const RopeScaling both =
      rope({{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 6.0}}}, {"rope_scaling", llama3}});
  EXPECT_EQ(both.type, RopeType::llama3);  // rope_scaling replaces all but the theta
  EXPECT_EQ(both.theta, 6);
  json alias = llama3;
  alias["type"] = alias["rope_type"];
  alias.erase("rope_type");
  EXPECT_EQ(rope({{"rope_scaling", alias}, {"rope_theta", 5}}).type, RopeType::llama3);
  EXPECT_EQ(rope({{"rope_scaling", {{"type", "default"}}}, {"rope_theta", 5}}).type, RopeType::plain);
}

TEST(Architecture, ConfigsThatCannotBeComputedAreRefusedByName) {
  const json base = json::parse(kSmolLM2_135M);
  const json qwen3 = json::parse(kQwen3_8B);
  const json llama3 = json::parse(kLlama3_2_1B);
  const auto with = [](json config, const char* key, const json& value) {
    if (value == json("(erase)")) {
      config.erase(key);
    } else {
      config[key] = value;
    }
    return config;
  };
  const auto with_rope = [&](const char* key, const json& value) {
    return with(base, "rope_scaling", with(llama3["rope_scaling"], key, value));
  };
  struct Case {
    json config;
    const char* message;
  };
  const Case cases[] = {
      {with(base, "model_type", "mistral"), "'model_type' is 'mistral'\n  supported: llama, qwen2, qwen3"},
      {with(base, "model_type", "qwen4"), "did you mean 'qwen2'?"},
      {with(base, "model_type", 3), "'model_type' is 3\n  expected a string"},
      {with(base, "model_type", "(erase)"), "the key 'model_type' is missing"},
      {with(base, "architectures", {"LlamaForSequenceClassification"}),
       "'architectures' is [\"LlamaForSequenceClassification\"]\n  expected [\"LlamaForCausalLM\"] for model_type "
       "llama"},
      {with(base, "architectures", "LlamaForCausalLM"), "'architectures' is \"LlamaForCausalLM\""},
      {with(base, "architectures", json::array()), "'architectures' is []"},
      {with(with(base, "hidden_size", "(erase)"), "hiden_size", 576),
       "the key 'hidden_size' is missing\n  the nearest key in the file is 'hiden_size'"},
      {with(base, "hidden_size", "576"), "'hidden_size' is \"576\"\n  expected an integer from 1 to 1048576"},
      {with(base, "hidden_size", 576.0), "'hidden_size' is 576.0"},
      {with(base, "hidden_size", true), "'hidden_size' is true"},
      {with(base, "hidden_size", nullptr), "'hidden_size' is null"},
      {with(base, "hidden_size", 0), "'hidden_size' is 0"},
      {with(base, "hidden_size", -576), "'hidden_size' is -576"},
      {with(base, "hidden_size", 18446744073709551615u), "'hidden_size' is 18446744073709551615"},
      {with(base, "num_hidden_layers", 1000000),
       "'num_hidden_layers' is 1000000\n  expected an integer from 1 to 16384"},
      {with(base, "num_hidden_layers", "(erase)"), "the key 'num_hidden_layers' is missing"},
      {with(base, "intermediate_size", "(erase)"), "the key 'intermediate_size' is missing"},
      {with(base, "vocab_size", "(erase)"), "the key 'vocab_size' is missing"},
      {with(base, "num_attention_heads", "(erase)"), "the key 'num_attention_heads' is missing"},
      {with(with(base, "num_attention_heads", 10), "num_key_value_heads", 5),
       "'hidden_size' is 576, which 'num_attention_heads' (10) does not divide"},
      {with(base, "num_key_value_heads", 2), "'num_attention_heads' is 9 and 'num_key_value_heads' is 2"},
      {with(base, "num_key_value_heads", 18), "expected the second to divide the first"},
      {with(base, "head_dim", 63), "the head dimension is 63\n  expected an even number"},
      {with(base, "head_dim", 1048576), "'num_attention_heads' times the head dimension is 9 * 1048576"},
      {with(qwen3, "head_dim", nullptr), "'head_dim' is null"},
      {with(base, "max_position_embeddings", 0), "'max_position_embeddings' is 0"},
      {with(base, "rms_norm_eps", 0), "'rms_norm_eps' is 0\n  expected a positive number"},
      {with(base, "rms_norm_eps", "1e-5"), "'rms_norm_eps' is \"1e-5\""},
      {with(base, "tie_word_embeddings", "yes"), "'tie_word_embeddings' is \"yes\"\n  expected true or false"},
      {with(base, "hidden_act", "gelu"), "'hidden_act' is \"gelu\"\n  expected \"silu\""},
      {with(base, "attention_bias", true), "'attention_bias' is true"},
      {with(qwen3, "attention_bias", true), "'attention_bias' is true"},
      {with(base, "mlp_bias", true), "'mlp_bias' is true"},
      {with(base, "rope_interleaved", true), "'rope_interleaved' is true"},
      {with(base, "pretraining_tp", 2), "'pretraining_tp' is 2"},
      {with(base, "partial_rotary_factor", 0.5), "'partial_rotary_factor' is 0.5"},
      {with(qwen3, "use_sliding_window", true), "'use_sliding_window' is true"},
      {with(base, "quantization_config", {{"quant_method", "awq"}}), "'quantization_config' is set"},
      {with(base, "layer_types", {"full_attention"}), "'layer_types' has 1 entries\n  expected 30 times"},
      {with(base, "layer_types", {"sliding_attention"}), "'layer_types[0]' is \"sliding_attention\""},
      {with(base, "layer_types", "full_attention"), "'layer_types' is \"full_attention\""},
      {with(base, "rope_theta", 0), "'rope_theta' is 0"},
      {with(base, "rope_theta", "1e5"), "'rope_theta' is \"1e5\""},
      {with(base, "rope_scaling", 3), "'rope_scaling' is 3\n  expected an object or null"},
      {with_rope("rope_type", "(erase)"), "the key 'rope_scaling.rope_type' is missing"},
      {with_rope("rope_type", "yarn"), "'rope_scaling.rope_type' is 'yarn'\n  supported: default, llama3"},
      {with_rope("rope_type", "linear"), "'rope_scaling.rope_type' is 'linear'"},
      {with_rope("rope_type", "dynamic"), "'rope_scaling.rope_type' is 'dynamic'"},
      {with_rope("rope_type", "longrope"), "'rope_scaling.rope_type' is 'longrope'"},
      {with_rope("factor", "(erase)"), "the key 'rope_scaling.factor' is missing"},
      {with_rope("factor", 0.5), "'rope_scaling.factor' is 0.5\n  expected a number of at least 1"},
      {with_rope("high_freq_factor", 1.0), "'rope_scaling.high_freq_factor' is 1.0\n  expected more than"},
      {with_rope("original_max_position_embeddings", "(erase)"),
       "the key 'rope_scaling.original_max_position_embeddings' is missing"},
      {with(base, "rope_parameters", {{"rope_type", "yarn"}}), "'rope_parameters.rope_type' is 'yarn'"},
      {with(base, "rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}),
       "'rope_parameters.full_attention' is {"},
  };
  for (const Case& c : cases) {
    const std::string message = parse_error(c.config.dump());
    EXPECT_TRUE(says(message, c.message));
    EXPECT_EQ(message.rfind("m/config.json: ", 0), 0u) << message;
  }
}

TEST(Architecture, TextThatIsNotOneJsonObjectIsRefused) {
  EXPECT_TRUE(says(parse_error(""), "m/config.json:1:1: not valid JSON"));
  EXPECT_TRUE(says(parse_error("[]"), "holds []\n  expected a JSON object"));
  EXPECT_TRUE(says(parse_error("{\n  \"a\": 1,\n  \"b\" 2}"), "m/config.json:3:7: not valid JSON"));
  EXPECT_TRUE(says(parse_error(R"({"vocab_size": 1, "vocab_size": 2})"), "the key 'vocab_size' appears twice"));
  EXPECT_TRUE(says(parse_error(R"({"a": {"b": 1, "c": [{"b": 1, "b": 2}]}})"), "the key 'b' appears twice"));
  std::string bomb = "{\"a\": ";
  bomb.append(2'000'000, '[');
  EXPECT_TRUE(says(parse_error(bomb), "nested deeper than 64 levels"));
  // The same key in different objects is no repetition.
  EXPECT_TRUE(
      says(parse_error(R"({"a": {"b": 1}, "c": {"b": 1}, "b": [{"b": 1}, {"b": 2}]})"), "'model_type' is missing"));
}

}  // namespace
}  // namespace dms
