#include "checkpoints/export.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoints/model_dir.h"
#include "checkpoints/safetensors.h"
#include "data/staged_file.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/tiny_model.h"
#include "tests/support/user_error_of.h"

namespace dms {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Adapters for the tiny model whose base is the directory `base`.
AdapterFile linear_adapters(const std::string& base) {
  AdapterFile file;
  file.adapter = "linear";
  file.bias = "per_head";
  file.window = 16;
  file.target_cr = 6.5;
  file.sequence_length = 512;
  file.base_model = "Tiny";
  file.base_sha256 = base_model_hash(base);
  const Architecture a = read_architecture(base);
  for (int64_t i = 0; i < a.num_layers; ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".self_attn.dms_proj_alpha";
    file.tensors.emplace_back(prefix + ".weight", at::randn({a.num_kv_heads, a.hidden_size}));
    file.tensors.emplace_back(prefix + "_norm.weight", at::randn({a.hidden_size}));
    file.tensors.emplace_back(prefix + ".bias", at::randn({a.num_kv_heads}));
  }
  return file;
}

// A base model, adapters for it, and what is exported from them.
class Export : public ::testing::Test {
 protected:
  void SetUp() override {
    write_tiny_model(base_);
    fs::create_directory(adapters_);
  }

  void run(const std::string& target, bool replace = false, const std::string& evaluation = "") {
    write_adapter_file(adapters_, linear_adapters(base_));
    ExportInput input = read_export_input(base_, adapters_);
    input.evaluation = evaluation;
    write_export(find_export_target(target), input, out_, replace);
  }

  json config() const { return json::parse(read_file(out_ + "/config.json")); }

  json base_config() const { return json::parse(read_file(base_ + "/config.json")); }

  void set_base_config(const json& config) { write_test_file(base_ + "/config.json", config.dump()); }

  std::vector<std::string> left_behind() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir_.path())) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }

  TemporaryDirectory dir_;
  const std::string base_ = dir_ / "base", adapters_ = dir_ / "adapters", out_ = dir_ / "out";
};

TEST_F(Export, HfHoldsTheBaseWeightsByteForByteAndIndexesEveryTensor) {
  run("hf");
  EXPECT_EQ(read_file(out_ + "/model-base.safetensors"), read_file(base_ + "/model.safetensors"));
  EXPECT_FALSE(fs::exists(out_ + "/model.safetensors")) << "transformers would read it instead of the index";

  const json index = json::parse(read_file(out_ + "/model.safetensors.index.json"));
  std::map<std::string, std::string> expected;
  int64_t total_bytes = 0;
  for (const RawTensor& tensor : tiny_model_tensors({})) {
    expected[tensor.name] = "model-base.safetensors";
    total_bytes += static_cast<int64_t>(tensor.bytes.size());
  }
  const AdapterFile adapters = read_adapter_file(adapters_, read_architecture(base_), "");
  const auto shard = SafetensorsFile::open(out_ + "/model-adapters.safetensors");
  for (const auto& [name, tensor] : adapters.tensors) {
    expected[name] = "model-adapters.safetensors";
    total_bytes += tensor.numel() * 4;
    EXPECT_TRUE(at::equal(shard->tensor(name), tensor)) << name;
  }
  EXPECT_EQ(index["weight_map"].get<decltype(expected)>(), expected);
  EXPECT_EQ(index["metadata"]["total_size"], total_bytes);
}

TEST_F(Export, HfKeepsTheNamesOfShards) {
  std::vector<RawTensor> first = tiny_model_tensors({}), second;
  second.push_back(first.back());
  first.pop_back();
  fs::remove(base_ + "/model.safetensors");
  write_test_file(base_ + "/model-1-of-2.safetensors", safetensors_bytes(first));
  write_test_file(base_ + "/model-2-of-2.safetensors", safetensors_bytes(second));
  json map;
  for (const RawTensor& tensor : first) map[tensor.name] = "model-1-of-2.safetensors";
  map[second[0].name] = "model-2-of-2.safetensors";
  write_test_file(base_ + "/model.safetensors.index.json", json{{"weight_map", map}}.dump());

  run("hf");
  const json index = json::parse(read_file(out_ + "/model.safetensors.index.json"));
  EXPECT_EQ(index["weight_map"][first[0].name], "model-1-of-2.safetensors");
  EXPECT_EQ(index["weight_map"][second[0].name], "model-2-of-2.safetensors");
  EXPECT_EQ(read_file(out_ + "/model-2-of-2.safetensors"), safetensors_bytes(second));
}

TEST_F(Export, HfConfigSaysTheModelTypeAndTheEvictionRule) {
  run("hf");
  const json config = this->config();
  EXPECT_EQ(config["model_type"], "dms_llama");
  EXPECT_EQ(config["architectures"], json({"DmsLlamaForCausalLM"}));
  EXPECT_EQ(config["auto_map"]["AutoConfig"], "configuration_dms.DmsLlamaConfig");
  EXPECT_EQ(config["auto_map"]["AutoModelForCausalLM"], "modeling_dms.DmsLlamaForCausalLM");
  EXPECT_EQ(config["dms_adapter"], "linear");
  EXPECT_EQ(config["dms_adapter_bias"], "per_head");
  EXPECT_EQ(config["dms_window"], 16);
  EXPECT_EQ(config["dms_decision_shift"], 1);
  EXPECT_EQ(config["dms_alpha_scale"], 100.0);
  EXPECT_EQ(config["dms_alpha_offset"], 5.0);
  EXPECT_EQ(config["dms_target_cr"], 6.5);
  EXPECT_EQ(config["dms_eviction"], true);
  EXPECT_EQ(config["hidden_size"], base_config()["hidden_size"]);
}

TEST_F(Export, HfConfigHasTheRopeAndDtypeKeysOfBothGenerations) {
  const json llama3 = {{"rope_type", "llama3"},  {"rope_theta", 5e5},       {"factor", 32.0},
                       {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 8192}};
  json base = base_config();
  for (const char* key : {"rope_theta", "rope_scaling", "torch_dtype", "head_dim"}) base.erase(key);
  base["rope_parameters"] = llama3;
  base["dtype"] = "bfloat16";  // the file is F32, and that is what counts
  set_base_config(base);
  run("hf");
  json config = this->config();
  EXPECT_FALSE(config.contains("rope_parameters"));
  EXPECT_FALSE(config.contains("dtype"));
  EXPECT_EQ(config["rope_theta"], 5e5);
  json scaling = llama3;
  scaling.erase("rope_theta");
  EXPECT_EQ(config["rope_scaling"], scaling);
  EXPECT_EQ(config["torch_dtype"], "float32");
  EXPECT_EQ(config["head_dim"], 8);

  base["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1234.0}};
  set_base_config(base);
  run("hf", /*replace=*/true);
  EXPECT_EQ(this->config()["rope_theta"], 1234.0);
  EXPECT_TRUE(this->config()["rope_scaling"].is_null());
}

TEST_F(Export, HfUntiesAHeadThatDiffersFromTheEmbedding) {
  std::vector<RawTensor> tensors = tiny_model_tensors({});
  RawTensor head = tensors[0];
  ASSERT_EQ(head.name, "model.embed_tokens.weight");
  head.name = "lm_head.weight";
  head.bytes[3] ^= 1;
  tensors.push_back(head);
  write_test_file(base_ + "/model.safetensors", safetensors_bytes(tensors));
  ASSERT_EQ(base_config()["tie_word_embeddings"], true);
  run("hf");
  EXPECT_EQ(config()["tie_word_embeddings"], false);
}

TEST_F(Export, HfCopiesTokenizerFilesAndTheTermsByteForByte) {
  write_test_file(base_ + "/generation_config.json", "{ \"eos_token_id\":2}");
  write_test_file(base_ + "/LICENSE", "do as you please");
  write_test_file(base_ + "/private-notes.txt", "not for others");
  fs::create_directory(base_ + "/additional_chat_templates");
  write_test_file(base_ + "/additional_chat_templates/tools.jinja", "{{ x }}");
  write_test_file(base_ + "/README.md", "---\nlanguage: en\nlicense: other\nlicense_name: tiny\n---\nlicense: no\n");
  run("hf");
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE",
                           "additional_chat_templates/tools.jinja"}) {
    EXPECT_EQ(read_file(out_ + "/" + name), read_file(base_ + "/" + name)) << name;
  }
  EXPECT_FALSE(fs::exists(out_ + "/private-notes.txt"));
  const std::string readme = read_file(out_ + "/README.md");
  EXPECT_TRUE(readme.starts_with("---\nlibrary_name: transformers\n")) << readme;
  EXPECT_NE(readme.find("\nlicense: other\nlicense_name: tiny\ntags:\n"), std::string::npos) << readme;
  EXPECT_EQ(readme.find("license: no"), std::string::npos);
  EXPECT_EQ(readme.find('@'), std::string::npos) << "a placeholder was left";
  EXPECT_EQ(readme.find("Measured"), std::string::npos);
}

TEST_F(Export, HfReadmeShowsTheFiguresOfAnEvaluation) {
  const std::string evaluation = dir_ / "eval.json";
  write_test_file(evaluation,
                  R"({"kl_mean": 0.01234, "kv_memory_ratio": 5.5, "tokens": 32768, "sequence_length": 1024})");
  run("hf", false, evaluation);
  const std::string readme = read_file(out_ + "/README.md");
  EXPECT_NE(readme.find("(32768 tokens in sequences of 1024)"), std::string::npos) << readme;
  EXPECT_NE(readme.find("| 5.5 |\n"), std::string::npos) << readme;
  EXPECT_NE(readme.find("| 0.01234 |\n"), std::string::npos) << readme;
}

TEST_F(Export, ARefusedEvaluationLeavesNothing) {
  const std::string evaluation = dir_ / "eval.json";
  write_test_file(evaluation, R"({"loss": 1})");
  EXPECT_TRUE(says(user_error_of([&] { run("hf", false, evaluation); }), "holds none of the figures"));
  EXPECT_EQ(left_behind(), (std::vector<std::string>{"adapters", "base", "eval.json"}));
}

TEST_F(Export, SidecarIsReadBackAsItWas) {
  run("sidecar");
  const AdapterFile written = read_adapter_file(adapters_, read_architecture(base_), "");
  const AdapterFile exported = read_adapter_file(out_, read_architecture(base_), base_model_hash(base_));
  EXPECT_EQ(read_file(out_ + "/dms_config.json"), read_file(adapters_ + "/dms_config.json"));
  ASSERT_EQ(exported.tensors.size(), written.tensors.size());
  for (size_t i = 0; i < written.tensors.size(); ++i) {
    EXPECT_EQ(exported.tensors[i].first, written.tensors[i].first);
    EXPECT_TRUE(at::equal(exported.tensors[i].second, written.tensors[i].second));
  }
}

TEST_F(Export, AnExistingDirectoryIsReplacedOnlyOnRequest) {
  fs::create_directory(out_);
  run("sidecar");  // empty: nothing to lose
  write_test_file(out_ + "/mine.txt", "precious");
  EXPECT_TRUE(says(user_error_of([&] { run("sidecar"); }), "exists already"));
  EXPECT_TRUE(fs::exists(out_ + "/mine.txt"));
  run("sidecar", /*replace=*/true);
  EXPECT_FALSE(fs::exists(out_ + "/mine.txt"));
  EXPECT_EQ(left_behind(), (std::vector<std::string>{"adapters", "base", "out"}));
}

TEST_F(Export, NeverReplacesItsOwnInput) {
  write_adapter_file(adapters_, linear_adapters(base_));
  const ExportInput input = read_export_input(base_, adapters_);
  const ExportTarget& target = find_export_target("hf");
  fs::create_directory_symlink(dir_.path(), out_);
  for (const std::string& place : {base_ + "/.", adapters_, dir_.path(), out_}) {
    const std::string message = user_error_of([&] { write_export(target, input, place, true); });
    EXPECT_TRUE(says(message, "from which the export is made")) << place;
  }
  EXPECT_TRUE(fs::exists(base_ + "/model.safetensors"));
  fs::create_directory(base_ + "-2");  // a longer name, not a directory above
  write_export(target, input, base_ + "-2", true);
}

TEST_F(Export, RefusesAdaptersOfAnotherBaseModel) {
  AdapterFile adapters = linear_adapters(base_);
  adapters.base_sha256 = std::string(64, 'f');
  write_adapter_file(adapters_, adapters);
  EXPECT_TRUE(says(user_error_of([&] { read_export_input(base_, adapters_); }), "belong to another base model"));
  EXPECT_EQ(read_export_input(base_, adapters_, /*check_base=*/false).adapters.base_sha256, adapters.base_sha256);
}

TEST(ExportTargets, AMisspelledOneIsAnsweredWithTheList) {
  const std::string message = user_error_of([] { find_export_target("sidcar"); });
  EXPECT_TRUE(says(message, "no export target 'sidcar'"));
  EXPECT_TRUE(says(message, "targets: hf, nvidia, fastdms, kvpress, sidecar"));
  EXPECT_TRUE(says(message, "did you mean 'sidecar'?"));
}

}  // namespace
}  // namespace dms
