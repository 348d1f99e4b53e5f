#include "checkpoints/adapter_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "checkpoints/run_dir.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/tiny_model.h"
#include "tests/support/user_error_of.h"

namespace dms {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const std::string kBase(64, 'a');

Architecture tiny_architecture() { return parse_architecture(tiny_config_json({}), "config.json"); }

at::Tensor index_tensor(const std::vector<int64_t>& values) {
  return at::tensor(at::ArrayRef<int64_t>(values)).view({-1, 2});
}

// Values that tell layers, tensors and elements apart.
AdapterFile sample(const std::string& adapter, const std::string& bias = "per_head", int64_t rank = 0) {
  AdapterFile file;
  file.adapter = adapter;
  file.bias = bias;
  file.rank = rank;
  file.alpha_scale = 0.1;  // not a binary fraction
  file.alpha_offset = -4.25;
  file.window = 64;
  file.decision_shift = 0;
  file.zero_after_rope = true;
  file.attend_across_documents = false;
  file.target_cr = 8;
  file.step = 500;
  file.sequence_length = 1024;
  file.base_model = "Tiny \"model\"";
  file.base_sha256 = kBase;
  file.recipe_sha256 = std::string(64, 'b');
  const Architecture a = tiny_architecture();
  const int64_t D = a.hidden_size, G = a.num_kv_heads;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    const float start = static_cast<float>(file.tensors.size());
    file.tensors.emplace_back(name, at::randn(shape) + start);
  };
  for (int64_t i = 0; i < a.num_layers; ++i) {
    const std::string attention = "model.layers." + std::to_string(i) + ".self_attn.";
    const std::string prefix = attention + (adapter == "linear" ? "dms_proj_alpha" : "dms_neuron");
    if (adapter == "linear") add(prefix + "_norm.weight", {D});
    if (rank == 0) add(prefix + ".weight", {G, D});
    if (rank > 0) add(prefix + ".lora_A.weight", {rank, D});
    if (rank > 0) add(prefix + ".lora_B.weight", {G, rank});
    if (bias == "per_head") add(prefix + ".bias", {G});
    if (adapter == "neuron") {
      file.tensors.emplace_back(prefix + ".index", index_tensor({0, 7, 3, i}));
    }
  }
  return file;
}

std::map<std::string, at::Tensor> by_name(const NamedTensors& tensors) { return {tensors.begin(), tensors.end()}; }

json read_config(const std::string& dir) {
  std::ifstream file(dir + "/dms_config.json");
  return json::parse(file);
}

std::string read_error(const std::string& dir, const std::string& base = kBase) {
  return user_error_of([&] { read_adapter_file(dir, tiny_architecture(), base); });
}

TEST(AdapterFile, EveryKindIsReadBackAsWritten) {
  for (const auto& [adapter, rank] : {std::pair{"linear", 0}, {"neuron", 0}, {"neuron", 3}}) {
    for (const char* bias : {"per_head", "none"}) {
      const TemporaryDirectory dir;
      const AdapterFile written = sample(adapter, bias, rank);
      write_adapter_file(dir.path(), written);
      const AdapterFile read = read_adapter_file(dir.path(), tiny_architecture(), kBase);
      EXPECT_EQ(read.adapter, written.adapter);
      EXPECT_EQ(read.bias, written.bias);
      EXPECT_EQ(read.rank, written.rank);
      EXPECT_EQ(read.alpha_scale, written.alpha_scale);
      EXPECT_EQ(read.alpha_offset, written.alpha_offset);
      EXPECT_EQ(read.window, written.window);
      EXPECT_EQ(read.decision_shift, written.decision_shift);
      EXPECT_EQ(read.zero_after_rope, written.zero_after_rope);
      EXPECT_EQ(read.attend_across_documents, written.attend_across_documents);
      EXPECT_EQ(read.target_cr, written.target_cr);
      EXPECT_EQ(read.step, written.step);
      EXPECT_EQ(read.sequence_length, written.sequence_length);
      EXPECT_EQ(read.base_model, written.base_model);
      EXPECT_EQ(read.base_sha256, written.base_sha256);
      EXPECT_EQ(read.recipe_sha256, written.recipe_sha256);
      const auto expected = by_name(written.tensors);
      EXPECT_EQ(read.tensors.size(), expected.size());
      for (const auto& [name, tensor] : read.tensors) EXPECT_TRUE(tensor.equal(expected.at(name))) << name;
      for (const auto& [name, tensor] : read.tensors) tensor.zero_();  // copies, not views of read-only memory
    }
  }
}

TEST(AdapterFile, AnglesOfBorrowedChannelsAreThereForAllLayersOrNone) {
  const TemporaryDirectory dir;
  AdapterFile written = sample("neuron");
  EXPECT_FALSE(has_turned_channels(written));
  const auto angle_name = [](int64_t i) { return "model.layers." + std::to_string(i) + ".self_attn.dms_neuron.angle"; };
  written.tensors.emplace_back(angle_name(0), at::tensor({0.5F, -1.0F}));
  write_adapter_file(dir.path(), written);
  EXPECT_TRUE(says(read_error(dir.path()), "has no '" + angle_name(1) + "'"));
  written.tensors.emplace_back(angle_name(1), at::tensor({0.0F, 3.0F}));
  write_adapter_file(dir.path(), written);
  const AdapterFile read = read_adapter_file(dir.path(), tiny_architecture(), kBase);
  EXPECT_TRUE(has_turned_channels(read));
  EXPECT_EQ(read.tensors.size(), written.tensors.size());

  Architecture normed = tiny_architecture();
  normed.family.qk_norm = true;
  EXPECT_TRUE(says(user_error_of([&] { read_adapter_file(dir.path(), normed, kBase); }), "has a norm on its queries"));
}

TEST(AdapterFile, BothFilesHoldTheSettings) {
  const TemporaryDirectory dir;
  write_adapter_file(dir.path(), sample("linear"));
  const json config = read_config(dir.path());
  const auto metadata = SafetensorsFile::open(dir / "adapters.safetensors")->metadata();
  EXPECT_EQ(config["format"], "dms-adapters");
  EXPECT_EQ(config["version"], 1);
  EXPECT_EQ(config["alpha_scale"], 0.1);
  EXPECT_EQ(config["zero_after_rope"], true);
  EXPECT_EQ(metadata.at("format"), "dms-adapters");
  EXPECT_EQ(metadata.at("version"), "1");
  EXPECT_EQ(metadata.at("alpha_scale"), "0.1");
  EXPECT_EQ(metadata.at("zero_after_rope"), "true");
  EXPECT_EQ(metadata.at("target_cr"), "8");
  EXPECT_EQ(metadata.size(), config.size());
}

TEST(AdapterFile, BadSettingsAreRefusedByName) {
  struct Case {
    const char* key;
    json value;
    const char* message;
  };
  const Case cases[] = {
      {"format", "peft", "'format' is \"peft\"\n  expected \"dms-adapters\""},
      {"version", 2, "'version' is 2\n  expected 1, the only one"},
      {"version", "1", "'version' is \"1\""},
      {"adapter", "lora", "'adapter' is \"lora\"\n  expected a string: linear or neuron"},
      {"bias", true, "'bias' is true"},
      {"rank", -1, "'rank' is -1\n  expected an integer from 0"},
      {"rank", 1.5, "'rank' is 1.5"},
      {"alpha_scale", "100", "'alpha_scale' is \"100\""},
      {"alpha_scale", nullptr, "'alpha_scale' is null"},
      {"decision_shift", 2, "'decision_shift' is 2\n  expected an integer from 0 to 1"},
      {"window", 18446744073709551615u, "'window' is 18446744073709551615"},
      {"zero_after_rope", "yes", "'zero_after_rope' is \"yes\"\n  expected true or false"},
      {"target_cr", 0.5, "'target_cr' is 0.5\n  expected a number from 1"},
      {"base_sha256", 5, "'base_sha256' is 5"},
      // Sound alone, but not what the tensors' metadata says.
      {"window", 65, "its metadata has 'window' '64'\n  but dms_config.json beside it says '65'"},
      {"alpha_offset", 5, "its metadata has 'alpha_offset' '-4.25'"},
      {"zero_after_rope", false, "its metadata has 'zero_after_rope' 'true'"},
      {"base_model", "other", "its metadata has 'base_model'"},
  };
  const TemporaryDirectory dir;
  write_adapter_file(dir.path(), sample("linear"));
  const json good = read_config(dir.path());
  for (const Case& c : cases) {
    json config = good;
    config[c.key] = c.value;
    write_test_file(dir / "dms_config.json", config.dump());
    EXPECT_TRUE(says(read_error(dir.path()), c.message)) << c.key << " " << c.value;
  }
  for (const auto& item : good.items()) {
    if (item.key() == "created_by") continue;
    json config = good;
    config.erase(item.key());
    write_test_file(dir / "dms_config.json", config.dump());
    EXPECT_TRUE(says(read_error(dir.path()), "the key '" + item.key() + "' is missing"));
  }
}

TEST(AdapterFile, BadTensorsAreRefusedByName) {
  const TemporaryDirectory dir;
  const auto error_with = [&](const AdapterFile& file) {
    write_adapter_file(dir.path(), file);
    return read_error(dir.path());
  };
  const AdapterFile linear = sample("linear"), neuron = sample("neuron");
  const std::string bias_1 = "model.layers.1.self_attn.dms_proj_alpha.bias";

  AdapterFile file = linear;
  std::erase_if(file.tensors, [&](const auto& item) { return item.first == bias_1; });
  EXPECT_TRUE(says(error_with(file), "has no '" + bias_1 + "'\n  expected one for each of the 2 layers"));
  file = linear;
  file.tensors.emplace_back("model.layers.2.self_attn.dms_proj_alpha.bias", at::zeros({2}));
  EXPECT_TRUE(says(error_with(file),
                   "holds 'model.layers.2.self_attn.dms_proj_alpha.bias'\n  a linear adapter for a "
                   "model of 2 layers has no such tensor"));
  const auto with = [](AdapterFile changed, const std::string& name, const at::Tensor& value) {
    for (auto& [key, tensor] : changed.tensors) {
      if (key == name) tensor = value;
    }
    return changed;
  };
  EXPECT_TRUE(says(error_with(with(linear, bias_1, at::zeros({3}))), "is F32 [3]\n  expected F32 [2]"));
  EXPECT_TRUE(says(error_with(with(linear, bias_1, at::zeros({2}, at::kHalf))), "is F16 [2]\n  expected F32 [2]"));
  EXPECT_TRUE(says(error_with(with(linear, bias_1, at::full({2}, NAN))), "'" + bias_1 + "' holds NaN or infinity"));

  const std::string index = "model.layers.1.self_attn.dms_neuron.index";
  const auto index_error = [&](const std::vector<int64_t>& values) {
    return error_with(with(neuron, index, index_tensor(values)));
  };
  EXPECT_EQ(index_error({1, 0, 2, 7}), "(no UserError)");
  EXPECT_TRUE(says(index_error({2, 0, 2, 7}),
                   "borrows channel 0 of query head 2 for KV head 0\n  expected a head "
                   "from 0 to 1 and a channel below 8"));
  EXPECT_TRUE(says(index_error({0, 0, 1, 7}), "of query head 1 for KV head 1"));
  EXPECT_TRUE(says(index_error({0, 0, 4, 7}), "of query head 4 for KV head 1"));
  EXPECT_TRUE(says(index_error({0, 8, 2, 7}), "borrows channel 8"));
  EXPECT_TRUE(says(index_error({-1, 0, 2, 7}), "of query head -1"));
  EXPECT_TRUE(says(index_error({0, -1, 2, 7}), "borrows channel -1"));
  EXPECT_TRUE(says(error_with(with(neuron, index, at::zeros({2, 2}))), "is F32 [2, 2]\n  expected I64 [2, 2]"));
}

TEST(AdapterFile, AnotherBaseModelIsRefusedUnlessNotAskedFor) {
  const TemporaryDirectory dir;
  write_adapter_file(dir.path(), sample("linear"));
  EXPECT_TRUE(
      says(read_error(dir.path(), std::string(64, 'c')),
           "belong to another base model: 'Tiny \"model\"' ('aaaaaaaaaaaa'...)\n  this model is 'cccccccccccc"));
  EXPECT_EQ(read_error(dir.path(), ""), "(no UserError)");
}

TEST(AdapterFile, IsFoundInACheckpointAndInARun) {
  const TemporaryDirectory run;
  for (const int64_t step : {1, 2}) {
    AdapterFile file = sample("linear");
    file.step = step;
    const std::string checkpoint = checkpoint_path(run.path(), step);
    fs::create_directories(checkpoint);
    write_adapter_file(checkpoint, file);
    write_manifest(checkpoint, step);
  }
  const auto step_in = [](const std::string& dir) { return read_adapter_file(dir, tiny_architecture(), kBase).step; };
  EXPECT_EQ(step_in(checkpoint_path(run.path(), 1)), 1);
  EXPECT_EQ(step_in(run.path()), 2);

  // A byte flips in the newest: the run falls back, the checkpoint itself is refused.
  const std::string newest = checkpoint_path(run.path(), 2);
  std::fstream tensors(newest + "/adapters.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  tensors.seekp(-1, std::ios::end);
  tensors.put('\x7f');
  tensors.close();
  EXPECT_EQ(step_in(run.path()), 1);
  EXPECT_TRUE(says(read_error(newest), "damaged checkpoint: 'adapters.safetensors' does not have the SHA-256"));
  fs::remove_all(checkpoint_path(run.path(), 1));
  EXPECT_TRUE(says(read_error(run.path()), "the run has no complete checkpoint"));
}

TEST(AdapterFile, OtherDirectoriesAreUserErrors) {
  const TemporaryDirectory dir;
  EXPECT_TRUE(says(read_error(dir.path()), "has no adapters.safetensors and no checkpoints"));
  EXPECT_TRUE(says(read_error(dir / "x"), "no such directory"));
  write_adapter_file(dir.path(), sample("linear"));
  EXPECT_TRUE(says(read_error(dir / "adapters.safetensors"), "not a directory"));
  fs::remove(dir / "dms_config.json");
  EXPECT_TRUE(says(read_error(dir.path()), "dms_config.json: no such file"));
}

}  // namespace
}  // namespace dms
