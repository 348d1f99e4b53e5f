#include "checkpoints/model_dir.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoints/safetensors.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/tiny_model.h"
#include "tests/support/user_error_of.h"

namespace dms {
namespace {

using nlohmann::json;

// The tiny model's directory, to be spoilt.
class ModelDir : public ::testing::Test {
 protected:
  ModelDir() { write_tiny_model(dir(), model_); }

  std::string dir() const { return temporary_ / "model"; }
  std::string file(const std::string& name) const { return dir() + "/" + name; }

  NamedTensors stored() const {
    NamedTensors tensors;
    const auto source = SafetensorsFile::open(file("model.safetensors"));
    for (const SafetensorsEntry& entry : source->entries()) {
      tensors.emplace_back(entry.name, source->tensor(entry.name).clone());
    }
    return tensors;
  }
  void store(const NamedTensors& tensors) const { write_safetensors(file("model.safetensors"), tensors); }

  void set_config(const std::string& key, const json& value) const {
    json config = json::parse(tiny_config_json(model_));
    config[key] = value;
    write_test_file(file("config.json"), config.dump());
  }

  // Moves the tensors into two shards with an index, and removes the single file.
  json shard() const {
    NamedTensors shards[2];
    json index = {{"metadata", {{"total_size", 1}}}, {"weight_map", json::object()}};
    const NamedTensors tensors = stored();
    for (size_t i = 0; i < tensors.size(); ++i) {
      shards[i % 2].push_back(tensors[i]);
      index["weight_map"][tensors[i].first] = shard_name(i % 2);
    }
    for (size_t i = 0; i < 2; ++i) write_safetensors(file(shard_name(i)), shards[i]);
    std::filesystem::remove(file("model.safetensors"));
    store_index(index);
    return index;
  }
  static std::string shard_name(size_t i) { return "model-0000" + std::to_string(i + 1) + "-of-00002.safetensors"; }
  void store_index(const json& index) const { write_test_file(file("model.safetensors.index.json"), index.dump()); }

  std::string error() const {
    return user_error_of([&] {
      const auto weights = open_weights(dir(), at::kFloat);
      for (int64_t i = 0; i < weights->architecture().num_layers; ++i) weights->layer(i);
      weights->embedding(), weights->final_norm(), weights->head();
    });
  }
  // What open_weights says on stderr.
  std::string warnings() const {
    ::testing::internal::CaptureStderr();
    open_weights(dir(), at::kFloat);
    return ::testing::internal::GetCapturedStderr();
  }

  TinyModel model_;
  TemporaryDirectory temporary_;
};

TEST_F(ModelDir, EveryTensorArrivesInItsPlace) {
  const auto weights = open_weights(dir(), at::kFloat);
  std::map<std::string, at::Tensor> expected;
  for (const auto& [name, tensor] : stored()) expected[name] = tensor;

  EXPECT_EQ(weights->dtype(), at::kFloat);
  EXPECT_TRUE(weights->embedding().equal(expected["model.embed_tokens.weight"]));
  EXPECT_TRUE(weights->final_norm().equal(expected["model.norm.weight"]));
  EXPECT_TRUE(weights->head().is_same(weights->embedding()));
  for (int64_t i = 0; i < model_.num_layers; ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    const LayerWeights layer = weights->layer(i);
    EXPECT_TRUE(layer.input_norm.equal(expected[prefix + "input_layernorm.weight"]));
    EXPECT_TRUE(layer.q_proj.equal(expected[prefix + "self_attn.q_proj.weight"]));
    EXPECT_TRUE(layer.k_proj.equal(expected[prefix + "self_attn.k_proj.weight"]));
    EXPECT_TRUE(layer.v_proj.equal(expected[prefix + "self_attn.v_proj.weight"]));
    EXPECT_TRUE(layer.o_proj.equal(expected[prefix + "self_attn.o_proj.weight"]));
    EXPECT_TRUE(layer.post_norm.equal(expected[prefix + "post_attention_layernorm.weight"]));
    EXPECT_TRUE(layer.gate_proj.equal(expected[prefix + "mlp.gate_proj.weight"]));
    EXPECT_TRUE(layer.up_proj.equal(expected[prefix + "mlp.up_proj.weight"]));
    EXPECT_TRUE(layer.down_proj.equal(expected[prefix + "mlp.down_proj.weight"]));
    EXPECT_FALSE(layer.q_bias.defined() || layer.k_bias.defined() || layer.v_bias.defined());
    EXPECT_FALSE(layer.q_norm.defined() || layer.k_norm.defined());
  }
}

TEST_F(ModelDir, TheStoredDtypeIsViewedAndOthersAreConvertedOnce) {
  const auto same = open_weights(dir(), at::kFloat), other = open_weights(dir(), at::kFloat);
  const at::Tensor stored_norm = same->layer(0).input_norm;
  EXPECT_TRUE(same->layer(0).input_norm.is_same(stored_norm));
  EXPECT_NE(stored_norm.data_ptr(), other->layer(0).input_norm.data_ptr());  // two mappings of one file

  const auto converted = open_weights(dir(), at::kBFloat16);
  const at::Tensor q_proj = converted->layer(1).q_proj;
  EXPECT_EQ(q_proj.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(q_proj.equal(same->layer(1).q_proj.to(at::kBFloat16)));
  EXPECT_TRUE(converted->layer(1).q_proj.is_same(q_proj));
}

TEST_F(ModelDir, TensorsOutliveTheirSource) {
  const at::Tensor norm = open_weights(dir(), at::kFloat)->final_norm();
  std::filesystem::remove_all(dir());
  EXPECT_TRUE(at::isfinite(norm).all().item<bool>());
}

TEST_F(ModelDir, Qwen2BiasesAndQwen3NormsAreRead) {
  NamedTensors tensors = stored();
  for (int64_t i = 0; i < model_.num_layers; ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".self_attn.";
    tensors.emplace_back(prefix + "q_proj.bias", at::full({model_.num_heads * model_.head_dim}, 1.0f));
    tensors.emplace_back(prefix + "k_proj.bias", at::full({model_.num_kv_heads * model_.head_dim}, 2.0f));
    tensors.emplace_back(prefix + "v_proj.bias", at::full({model_.num_kv_heads * model_.head_dim}, 3.0f));
    tensors.emplace_back(prefix + "q_norm.weight", at::full({model_.head_dim}, 4.0f));
    tensors.emplace_back(prefix + "k_norm.weight", at::full({model_.head_dim}, 5.0f));
  }
  store(tensors);
  json config = json::parse(tiny_config_json(model_));
  config["model_type"] = "qwen2";
  config["architectures"] = {"Qwen2ForCausalLM"};
  write_test_file(file("config.json"), config.dump());
  const LayerWeights qwen2 = open_weights(dir(), at::kFloat)->layer(1);
  EXPECT_EQ(qwen2.q_bias[0].item<float>(), 1.0f);
  EXPECT_EQ(qwen2.k_bias[0].item<float>(), 2.0f);
  EXPECT_EQ(qwen2.v_bias[0].item<float>(), 3.0f);
  EXPECT_FALSE(qwen2.q_norm.defined());

  config["model_type"] = "qwen3";
  config["architectures"] = {"Qwen3ForCausalLM"};
  write_test_file(file("config.json"), config.dump());
  const LayerWeights qwen3 = open_weights(dir(), at::kFloat)->layer(1);
  EXPECT_EQ(qwen3.q_norm[0].item<float>(), 4.0f);
  EXPECT_EQ(qwen3.k_norm[0].item<float>(), 5.0f);
  EXPECT_FALSE(qwen3.q_bias.defined());
}

TEST_F(ModelDir, ShardsGiveTheSameWeightsAsOneFile) {
  const auto single = open_weights(dir(), at::kFloat);
  const at::Tensor down_proj = single->layer(1).down_proj, embedding = single->embedding();
  const json index = shard();
  const auto sharded = open_weights(dir(), at::kFloat);
  EXPECT_TRUE(sharded->layer(1).down_proj.equal(down_proj));
  EXPECT_TRUE(sharded->embedding().equal(embedding));

  std::map<std::string, std::string> expected;
  for (const auto& item : index["weight_map"].items()) expected[item.key()] = item.value();
  EXPECT_EQ(weight_map(dir()), expected);
}

TEST_F(ModelDir, TheIndexDecidesWhereATensorIsRead) {
  const at::Tensor norm = open_weights(dir(), at::kFloat)->final_norm();
  const json index = shard();
  EXPECT_EQ(warnings(), "");
  const std::string other = shard_name(index["weight_map"]["model.norm.weight"] == shard_name(0));
  NamedTensors tensors = {{"model.norm.weight", norm + 1}, {"unlisted", norm}};
  const auto source = SafetensorsFile::open(file(other));
  for (const SafetensorsEntry& entry : source->entries()) {
    tensors.emplace_back(entry.name, source->tensor(entry.name).clone());
  }
  write_safetensors(file(other), tensors);
  EXPECT_TRUE(says(warnings(), "not where the index puts it, and ignored:\n  'model.norm.weight' in " + other +
                                   "\n  'unlisted' in " + other));
  EXPECT_TRUE(open_weights(dir(), at::kFloat)->final_norm().equal(norm));
}

TEST_F(ModelDir, ASingleFileWinsOverAnIndex) {
  store_index({{"weight_map", {{"model.norm.weight", "absent.safetensors"}}}});
  EXPECT_EQ(error(), "(no UserError)");
}

TEST_F(ModelDir, BadIndicesAreRefused) {
  const json good = shard();
  for (const char* name : {"../x.safetensors", "/etc/passwd", "sub/x.safetensors", "a\\b", "..", ""}) {
    json index = good;
    index["weight_map"]["model.norm.weight"] = name;
    store_index(index);
    EXPECT_TRUE(says(error(), "'weight_map' puts 'model.norm.weight' into")) << name;
  }
  json index = good;
  index["weight_map"]["model.norm.weight"] = 3;
  store_index(index);
  EXPECT_TRUE(says(error(), "'weight_map' puts 'model.norm.weight' into 3"));
  store_index({{"metadata", {{"total_size", 1}}}});
  EXPECT_TRUE(says(error(), "has no 'weight_map'"));
  store_index({{"weight_map", json::object()}});
  EXPECT_TRUE(says(error(), "has no 'weight_map'"));
  write_test_file(file("model.safetensors.index.json"), "{\"weight_map\": {\"a\": \"x\", \"a\": \"y\"}}");
  EXPECT_TRUE(says(error(), "the key 'a' appears twice"));
  write_test_file(file("model.safetensors.index.json"), "[]");
  EXPECT_TRUE(says(error(), "expected a JSON object"));

  index = good;
  index["weight_map"]["model.norm.weight"] = shard_name(good["weight_map"]["model.norm.weight"] == shard_name(0));
  store_index(index);
  EXPECT_TRUE(says(error(), "'model.norm.weight' is not in " + shard_name(0).substr(0, 9)));
  index = good;
  index["weight_map"].erase("model.norm.weight");
  store_index(index);
  EXPECT_TRUE(says(error(), "missing 1 of the 20 tensors that config.json implies:\n  model.norm.weight"));
}

TEST_F(ModelDir, AllMissingShardsAreListed) {
  shard();
  std::filesystem::remove(file(shard_name(0)));
  EXPECT_TRUE(says(error(), "missing 1 of 2 weight files:\n  '" + shard_name(0) + "'\n  the download"));
  std::filesystem::remove(file(shard_name(1)));
  EXPECT_TRUE(says(error(), "missing 2 of 2 weight files:\n  '" + shard_name(0) + "'\n  '" + shard_name(1)));
}

TEST_F(ModelDir, ATruncatedShardIsNamed) {
  shard();
  std::filesystem::resize_file(file(shard_name(1)), std::filesystem::file_size(file(shard_name(1))) - 100);
  EXPECT_TRUE(says(error(), shard_name(1) + ": 'model."));
  EXPECT_TRUE(says(error(), "(100 bytes short)"));
}

TEST_F(ModelDir, MissingFilesAreUserErrors) {
  EXPECT_TRUE(says(user_error_of([&] { open_weights(dir() + "x", at::kFloat); }), "no such directory"));
  EXPECT_TRUE(says(user_error_of([&] { open_weights(file("config.json"), at::kFloat); }), "not a directory"));
  std::filesystem::rename(file("model.safetensors"), file("pytorch_model.bin"));
  EXPECT_TRUE(says(error(), "has no weights"));
  EXPECT_TRUE(says(error(), "found 'pytorch_model.bin': load it with transformers"));
  std::filesystem::remove(file("config.json"));
  EXPECT_TRUE(says(error(), "config.json: no such file"));
}

TEST_F(ModelDir, TensorsThatDoNotFitTheConfigAreListed) {
  set_config("intermediate_size", 65);
  EXPECT_TRUE(says(error(),
                   "shapes other than config.json implies in 6 of the 20 tensors:\n"
                   "  'model.layers.0.mlp.gate_proj.weight' is F32 [64, 32], expected F32 [65, 32]"));
  set_config("num_hidden_layers", 4);
  EXPECT_TRUE(says(error(), "missing 18 of the 38 tensors that config.json implies:"));
  EXPECT_TRUE(says(error(), "model.layers.2.mlp.up_proj.weight\n  and 10 more"));
  set_config("tie_word_embeddings", false);
  EXPECT_TRUE(says(error(), "lm_head.weight\n  config.json has tie_word_embeddings false"));
}

TEST_F(ModelDir, AMisspeltTensorIsHinted) {
  NamedTensors tensors = stored();
  for (auto& [name, tensor] : tensors) {
    if (name == "model.norm.weight") name = "model.norms.weight";
  }
  store(tensors);
  EXPECT_TRUE(says(error(), "model.norm.weight\n  the nearest name in the file is 'model.norms.weight'"));
}

TEST_F(ModelDir, OnlyFloatWeightsAreAccepted) {
  NamedTensors tensors = stored();
  for (auto& [name, tensor] : tensors) tensor = tensor.to(name == "model.norm.weight" ? at::kDouble : at::kFloat);
  store(tensors);
  EXPECT_TRUE(says(error(), "'model.norm.weight' is F64 [32]\n  expected F32, F16 or BF16"));
}

TEST_F(ModelDir, NonFiniteWeightsAreFoundOnFirstUse) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const at::ScalarType stored_as : {at::kFloat, at::kBFloat16, at::kHalf}) {
      NamedTensors tensors = stored();
      for (auto& [name, tensor] : tensors) {
        tensor = tensor.nan_to_num().to(stored_as);
        if (name == "model.layers.1.mlp.up_proj.weight") tensor[37][5] = bad;
      }
      store(tensors);
      const auto weights = open_weights(dir(), stored_as);
      weights->layer(0);
      weights->embedding();
      EXPECT_TRUE(says(user_error_of([&] { weights->layer(1); }),
                       "'model.layers.1.mlp.up_proj.weight' holds NaN or infinity (1 of 2048 values, the first at "
                       "element 1189)"));
    }
  }
}

TEST_F(ModelDir, OverflowInTheConversionIsNotBlamedOnTheFile) {
  NamedTensors tensors = stored();
  for (auto& [name, tensor] : tensors) {
    if (name == "model.norm.weight") tensor[3] = 1e6f;
  }
  store(tensors);
  open_weights(dir(), at::kFloat)->final_norm();
  const auto weights = open_weights(dir(), at::kHalf);
  EXPECT_TRUE(says(user_error_of([&] { weights->final_norm(); }), "beyond the range of float16"));
}

TEST_F(ModelDir, UnknownTensorsAreReportedOnceButRotaryTablesAreNot) {
  EXPECT_EQ(warnings(), "");
  NamedTensors tensors = stored();
  tensors.emplace_back("model.layers.0.self_attn.rotary_emb.inv_freq", at::ones({4}));
  store(tensors);
  EXPECT_EQ(warnings(), "");
  tensors.emplace_back("model.layers.0.self_attn.extra", at::ones({4}));
  store(tensors);
  const std::string said = warnings();
  EXPECT_TRUE(says(said, "unknown to a llama model, and ignored:\n  'model.layers.0.self_attn.extra'"));
  EXPECT_EQ(said.find("unknown to a llama model"), said.rfind("unknown to a llama model")) << said;
}

TEST_F(ModelDir, ATiedModelWithItsOwnHeadIsTiedOnlyWhenTheyAreEqual) {
  const at::Tensor embedding = open_weights(dir(), at::kFloat)->embedding();
  NamedTensors tensors = stored();
  tensors.emplace_back("lm_head.weight", embedding.clone());
  store(tensors);
  EXPECT_EQ(warnings(), "");
  EXPECT_TRUE(open_weights(dir(), at::kFloat)->architecture().tied_embeddings);

  tensors.back().second[0][0] += 1;
  store(tensors);
  EXPECT_TRUE(says(warnings(), "'lm_head.weight' differs from it: using it as the head"));
  const auto untied = open_weights(dir(), at::kFloat);
  EXPECT_FALSE(untied->architecture().tied_embeddings);
  EXPECT_TRUE(untied->head().equal(tensors.back().second));
  EXPECT_FALSE(untied->head().equal(untied->embedding()));
}

TEST_F(ModelDir, IsCalledByItsSourceItsHubNameOrItsDirectory) {
  EXPECT_EQ(base_model_name(dir()), "model");
  EXPECT_EQ(base_model_name(dir() + "/"), "model");
  for (const char* path : {"/home/someone/checkpoint", "./checkpoint", "../a", "~/a", "a/b/c", ""}) {
    set_config("_name_or_path", path);
    EXPECT_EQ(base_model_name(dir()), "model") << path;
  }
  set_config("_name_or_path", "meta-llama/Llama-3.2-1B");
  EXPECT_EQ(base_model_name(dir()), "meta-llama/Llama-3.2-1B");
  write_test_file(file("source.json"), R"({"name": "SmolLM2-135M-Instruct"})");
  EXPECT_EQ(base_model_name(dir()), "SmolLM2-135M-Instruct");
}

TEST_F(ModelDir, TheBaseHashFollowsTheContentNotThePlace) {
  const std::string hash = base_model_hash(dir());
  EXPECT_EQ(hash.size(), 64u);
  std::filesystem::copy(dir(), temporary_ / "copy");
  EXPECT_EQ(base_model_hash(temporary_ / "copy"), hash);

  NamedTensors tensors = stored();
  tensors[0].second.view({-1})[0] += 1;
  store(tensors);
  EXPECT_NE(base_model_hash(dir()), hash);
  EXPECT_EQ(base_model_hash(temporary_ / "copy"), hash);
}

}  // namespace
}  // namespace dms
