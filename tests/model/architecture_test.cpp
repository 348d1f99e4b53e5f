#include "model/architecture.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/support/user_error_of.h"

namespace dms {
namespace {

using nlohmann::json;

// The config.json of a released model: its keys and values (tests/model/configs/).
std::string config_of(const std::string& model) {
  std::ifstream file(std::string(DMS_TEST_CONFIGS) + "/" + model + ".json");
  return {std::istreambuf_iterator<char>(file), {}};
}

Architecture parse(const json& config) { return parse_architecture(config.dump(), "config.json"); }
std::string parse_error(const std::string& text) {
  return user_error_of([&] { parse_architecture(text, "m/config.json"); });
}

TEST(Architecture, ReleasedConfigsAreRead) {
  const Architecture qwen3 = parse_architecture(config_of("qwen3-8b"), "config.json");
  EXPECT_EQ(qwen3.num_parameters(), 8'190'735'360);
  EXPECT_TRUE(qwen3.family.qk_norm && !qwen3.family.qkv_bias && !qwen3.tied_embeddings);
  EXPECT_EQ(qwen3.group_size(), 4);
  EXPECT_EQ(qwen3.rope.type, RopeType::plain);
  EXPECT_EQ(qwen3.rope.theta, 1e6);
  EXPECT_EQ(qwen3.rms_norm_eps, 1e-6);
  EXPECT_EQ(qwen3.max_positions, 40960);

  const Architecture r1 = parse_architecture(config_of("r1-distill-qwen-7b"), "config.json");
  EXPECT_EQ(r1.num_parameters(), 7'615'616'512);
  EXPECT_TRUE(r1.family.qkv_bias && !r1.family.qk_norm && !r1.tied_embeddings);
  EXPECT_EQ(r1.head_dim, 128);  // derived: 3584 / 28
  EXPECT_EQ(r1.group_size(), 7);
  EXPECT_EQ(r1.rope.theta, 1e4);

  const Architecture llama = parse_architecture(config_of("llama-3.2-1b"), "config.json");
  EXPECT_EQ(llama.num_parameters(), 1'235'814'400);
  EXPECT_TRUE(llama.tied_embeddings && !llama.family.qkv_bias && !llama.family.qk_norm);
  EXPECT_EQ(llama.rope.type, RopeType::llama3);
  EXPECT_EQ(llama.rope.theta, 5e5);
  EXPECT_EQ(llama.rope.factor, 32);
  EXPECT_EQ(llama.rope.low_freq_factor, 1);
  EXPECT_EQ(llama.rope.high_freq_factor, 4);
  EXPECT_EQ(llama.rope.original_max_position, 8192);
  EXPECT_EQ(llama.rms_norm_eps, 1e-5);

  const Architecture smol = parse_architecture(config_of("smollm2-135m"), "config.json");
  EXPECT_EQ(smol.num_parameters(), 134'515'008);
  EXPECT_EQ(smol.head_dim, 64);
  EXPECT_EQ(smol.group_size(), 3);
  EXPECT_EQ(smol.vocab_size, 49152);
  EXPECT_EQ(smol.rope.theta, 1e5);
}

// Counts: transformers on meta tensors, embeddings once when tied.
TEST(Architecture, EveryTargetModelIsReadExactly) {
  struct Row {
    const char* name;
    const char* family;
    int64_t L, D, H, G, d, I, V;
    double theta, eps;
    bool tied;
    RopeType rope;
    int64_t parameters;
  };
  constexpr RopeType kPlain = RopeType::plain, kLlama3 = RopeType::llama3;
  const Row rows[] = {
      {"smollm2-135m", "llama", 30, 576, 9, 3, 64, 1536, 49152, 1e5, 1e-5, true, kPlain, 134'515'008},
      {"llama-3.2-1b", "llama", 16, 2048, 32, 8, 64, 8192, 128256, 5e5, 1e-5, true, kLlama3, 1'235'814'400},
      {"llama-3.2-3b", "llama", 28, 3072, 24, 8, 128, 8192, 128256, 5e5, 1e-5, true, kLlama3, 3'212'749'824},
      {"llama-3.1-8b", "llama", 32, 4096, 32, 8, 128, 14336, 128256, 5e5, 1e-5, false, kLlama3, 8'030'261'248},
      {"r1-distill-llama-8b", "llama", 32, 4096, 32, 8, 128, 14336, 128256, 5e5, 1e-5, false, kLlama3, 8'030'261'248},
      {"qwen3-0.6b", "qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 1e6, 1e-6, true, kPlain, 596'049'920},
      {"qwen3-1.7b", "qwen3", 28, 2048, 16, 8, 128, 6144, 151936, 1e6, 1e-6, true, kPlain, 1'720'574'976},
      {"qwen3-4b", "qwen3", 36, 2560, 32, 8, 128, 9728, 151936, 1e6, 1e-6, true, kPlain, 4'022'468'096},
      {"qwen3-4b-2507", "qwen3", 36, 2560, 32, 8, 128, 9728, 151936, 5e6, 1e-6, true, kPlain, 4'022'468'096},
      {"qwen3-8b", "qwen3", 36, 4096, 32, 8, 128, 12288, 151936, 1e6, 1e-6, false, kPlain, 8'190'735'360},
      {"qwen3-14b", "qwen3", 40, 5120, 40, 8, 128, 17408, 151936, 1e6, 1e-6, false, kPlain, 14'768'307'200},
      {"qwen3-32b", "qwen3", 64, 5120, 64, 8, 128, 25600, 151936, 1e6, 1e-6, false, kPlain, 32'762'123'264},
      {"r1-distill-qwen-1.5b", "qwen2", 28, 1536, 12, 2, 128, 8960, 151936, 1e4, 1e-6, false, kPlain, 1'777'088'000},
      {"r1-distill-qwen-7b", "qwen2", 28, 3584, 28, 4, 128, 18944, 152064, 1e4, 1e-6, false, kPlain, 7'615'616'512},
      {"r1-distill-qwen-14b", "qwen2", 48, 5120, 40, 8, 128, 13824, 152064, 1e6, 1e-5, false, kPlain, 14'770'033'664},
      {"r1-distill-qwen-32b", "qwen2", 64, 5120, 40, 8, 128, 27648, 152064, 1e6, 1e-5, false, kPlain, 32'763'876'352},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    const Architecture a = parse_architecture(config_of(row.name), row.name);
    EXPECT_EQ(a.family.model_type, row.family);
    EXPECT_EQ(a.num_layers, row.L);
    EXPECT_EQ(a.hidden_size, row.D);
    EXPECT_EQ(a.num_heads, row.H);
    EXPECT_EQ(a.num_kv_heads, row.G);
    EXPECT_EQ(a.head_dim, row.d);
    EXPECT_EQ(a.intermediate_size, row.I);
    EXPECT_EQ(a.vocab_size, row.V);
    EXPECT_EQ(a.rope.theta, row.theta);
    EXPECT_EQ(a.rope.type, row.rope);
    EXPECT_EQ(a.rms_norm_eps, row.eps);
    EXPECT_EQ(a.tied_embeddings, row.tied);
    EXPECT_EQ(a.num_parameters(), row.parameters);
  }
  const std::filesystem::directory_iterator files(DMS_TEST_CONFIGS), end;
  EXPECT_EQ(std::distance(files, end), std::ssize(rows)) << "a config without a row";
}

TEST(Architecture, TensorNamesAndShapesFollowTheFamily) {
  const auto shapes = [](const std::string& text) {
    std::map<std::string, std::vector<int64_t>> found;
    for (const TensorSpec& tensor : expected_tensors(parse_architecture(text, ""))) found[tensor.name] = tensor.shape;
    return found;
  };
  using Shape = std::vector<int64_t>;
  auto qwen3 = shapes(config_of("qwen3-8b"));
  EXPECT_EQ(qwen3.size(), 36u * 11 + 3);
  EXPECT_EQ(qwen3.at("model.layers.35.self_attn.q_norm.weight"), Shape{128});
  EXPECT_EQ(qwen3.at("model.layers.35.self_attn.k_norm.weight"), Shape{128});
  EXPECT_EQ(qwen3.at("model.layers.0.self_attn.k_proj.weight"), (Shape{1024, 4096}));
  EXPECT_EQ(qwen3.at("lm_head.weight"), (Shape{151936, 4096}));
  json wide_heads = json::parse(config_of("qwen3-8b"));  // H * d = 8192, as in Qwen3-32B, is not D
  wide_heads["num_attention_heads"] = 64;
  EXPECT_EQ(shapes(wide_heads.dump()).at("model.layers.0.self_attn.q_proj.weight"), (Shape{8192, 4096}));
  EXPECT_EQ(shapes(wide_heads.dump()).at("model.layers.0.self_attn.o_proj.weight"), (Shape{4096, 8192}));
  auto r1 = shapes(config_of("r1-distill-qwen-7b"));
  EXPECT_EQ(r1.size(), 28u * 12 + 3);
  EXPECT_EQ(r1.at("model.layers.27.self_attn.q_proj.bias"), Shape{3584});
  EXPECT_EQ(r1.at("model.layers.27.self_attn.k_proj.bias"), Shape{512});
  EXPECT_EQ(r1.at("model.layers.27.self_attn.v_proj.bias"), Shape{512});
  EXPECT_FALSE(r1.contains("model.layers.0.self_attn.o_proj.bias"));
  auto smol = shapes(config_of("smollm2-135m"));
  EXPECT_EQ(smol.size(), 30u * 9 + 2);
  EXPECT_FALSE(smol.contains("lm_head.weight"));
  EXPECT_EQ(smol.at("model.layers.29.mlp.down_proj.weight"), (Shape{576, 1536}));
  EXPECT_EQ(smol.at("model.layers.29.self_attn.o_proj.weight"), (Shape{576, 576}));
}

TEST(Architecture, DefaultsAreThoseOfTheFamily) {
  json llama = json::parse(config_of("smollm2-135m"));
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

  json qwen3 = json::parse(config_of("qwen3-8b"));
  qwen3.erase("head_dim");
  qwen3["hidden_size"] = 1024;
  qwen3["num_attention_heads"] = 64;
  qwen3.erase("num_key_value_heads");
  EXPECT_EQ(parse(qwen3).head_dim, 128);  // never D / H
  EXPECT_EQ(parse(qwen3).num_kv_heads, 32);
  qwen3["num_key_value_heads"] = nullptr;
  EXPECT_EQ(parse(qwen3).num_kv_heads, 64);

  json qwen2 = json::parse(config_of("r1-distill-qwen-7b"));
  qwen2["attention_bias"] = true;  // ignored: q, k, v are always biased, o never
  EXPECT_EQ(parse(qwen2).num_parameters(), 7'615'616'512);
}

TEST(Architecture, BothGenerationsOfRopeKeysAreRead) {
  const json llama3 = json::parse(config_of("llama-3.2-1b"))["rope_scaling"];
  const auto rope = [](const json& changes) {
    json config = json::parse(config_of("smollm2-135m"));
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

TEST(Architecture, YarnIsResolvedAsTheReferenceDoes) {
  const auto rope = [](json scaling, const json& changes = json::object()) {
    json config = json::parse(config_of("qwen3-8b"));
    scaling["rope_type"] = "yarn";
    config["rope_scaling"] = scaling;
    config.update(changes);
    return parse(config).rope;
  };
  // As the Qwen3 model cards tell users to extend the context.
  const RopeScaling qwen = rope({{"factor", 4.0}, {"original_max_position_embeddings", 32768}});
  EXPECT_EQ(qwen.type, RopeType::yarn);
  EXPECT_EQ(qwen.theta, 1e6);
  EXPECT_EQ(qwen.factor, 4);
  EXPECT_EQ(qwen.original_max_position, 32768);
  EXPECT_DOUBLE_EQ(qwen.attention_factor, 0.1 * std::log(4.0) + 1.0);
  EXPECT_EQ(qwen.beta_fast, 32);
  EXPECT_EQ(qwen.beta_slow, 1);
  EXPECT_TRUE(qwen.truncate);

  EXPECT_EQ(rope({{"factor", 4.0}}).original_max_position, 40960);  // max_position_embeddings stands in
  EXPECT_EQ(rope({{"factor", 4.0}, {"original_max_position_embeddings", 1}}, {{"original_max_position_embeddings", 7}})
                .original_max_position,
            7);  // a key of the model itself wins
  EXPECT_EQ(rope({{"factor", nullptr}, {"original_max_position_embeddings", 8192}}).factor, 5);  // 40960 / 8192
  EXPECT_EQ(rope({{"factor", 1.0}}).attention_factor, 1.0);
  EXPECT_EQ(
      rope({{"factor", 4.0}, {"attention_factor", 0.7}, {"mscale", 1.0}, {"mscale_all_dim", 2.0}}).attention_factor,
      0.7);
  EXPECT_DOUBLE_EQ(rope({{"factor", 4.0}, {"mscale", 0.707}, {"mscale_all_dim", 1.4}}).attention_factor,
                   (0.0707 * std::log(4.0) + 1.0) / (0.14 * std::log(4.0) + 1.0));
  EXPECT_DOUBLE_EQ(rope({{"factor", 4.0}, {"mscale", 0.707}, {"mscale_all_dim", 0}}).attention_factor,
                   0.1 * std::log(4.0) + 1.0);  // one without the other counts for nothing
  const RopeScaling betas = rope({{"factor", 4.0}, {"beta_fast", 16}, {"beta_slow", 2.0}, {"truncate", false}});
  EXPECT_EQ(betas.beta_fast, 16);
  EXPECT_EQ(betas.beta_slow, 2);
  EXPECT_FALSE(betas.truncate);
}

TEST(Architecture, ConfigsThatCannotBeComputedAreRefusedByName) {
  const json base = json::parse(config_of("smollm2-135m"));
  const json qwen3 = json::parse(config_of("qwen3-8b"));
  const json llama3 = json::parse(config_of("llama-3.2-1b"));
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
      {with_rope("rope_type", "dynamic"),
       "'rope_scaling.rope_type' is 'dynamic'\n  supported: default, linear, llama3, yarn"},
      {with_rope("rope_type", "longrope"), "'rope_scaling.rope_type' is 'longrope'"},
      {with_rope("factor", "(erase)"), "the key 'rope_scaling.factor' is missing"},
      {with_rope("factor", 0.5), "'rope_scaling.factor' is 0.5\n  expected a number of at least 1"},
      {with_rope("high_freq_factor", 1.0), "'rope_scaling.high_freq_factor' is 1.0\n  expected more than"},
      {with(with_rope("original_max_position_embeddings", "(erase)"), "max_position_embeddings", nullptr),
       "the key 'rope_scaling.original_max_position_embeddings' is missing"},
      {with_rope("original_max_position_embeddings", 0), "'rope_scaling.original_max_position_embeddings' is 0"},
      {with(base, "rope_scaling", {{"type", "linear"}}), "the key 'rope_scaling.factor' is missing"},
      {with(base, "rope_scaling", {{"type", "linear"}, {"factor", nullptr}}), "'rope_scaling.factor' is null"},
      {with(base, "rope_parameters", {{"rope_type", "yarn"}}), "the key 'rope_parameters.factor' is missing"},
      {with(base, "rope_scaling", {{"type", "yarn"}, {"factor", 2.0}, {"beta_fast", 0.5}}),
       "yarn's beta_fast is less than its beta_slow"},
      {with(base, "rope_scaling", {{"type", "yarn"}, {"factor", 2.0}, {"attention_factor", -1.0}}),
       "'rope_scaling.attention_factor' is -1.0"},
      {with(base, "rope_scaling", {{"type", "yarn"}, {"factor", 2.0}, {"truncate", "no"}}),
       "'rope_scaling.truncate' is \"no\""},
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
