// The layouts of other tools, file by file.  tests/reference/export_*_reference.py runs them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <tuple>

#include "checkpoints/export.h"
#include "checkpoints/fixed_neuron.h"
#include "checkpoints/model_dir.h"
#include "checkpoints/safetensors.h"
#include "data/staged_file.h"
#include "model/adapter.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/tiny_model.h"
#include "tests/support/user_error_of.h"

namespace dms {
namespace {

namespace fs = std::filesystem;

std::string layer_name(int64_t layer, const std::string& part) {
  return "model.layers." + std::to_string(layer) + ".self_attn." + part;
}

Architecture architecture_of(const std::string& family, int64_t layers, int64_t D, int64_t H, int64_t G, int64_t d) {
  Architecture a;
  for (const Family& known : families()) {
    if (known.model_type == family) a.family = known;
  }
  a.num_layers = layers;
  a.hidden_size = D;
  a.num_heads = H;
  a.num_kv_heads = G;
  a.head_dim = d;
  return a;
}

AdapterFile linear(const Architecture& a, const std::string& bias = "none") {
  AdapterFile file;
  file.adapter = "linear";
  file.bias = bias;
  file.window = 512;
  for (int64_t i = 0; i < a.num_layers; ++i) {
    file.tensors.emplace_back(layer_name(i, "dms_proj_alpha.weight"), at::ones({a.num_kv_heads, a.hidden_size}));
    file.tensors.emplace_back(layer_name(i, "dms_proj_alpha_norm.weight"), at::ones({a.hidden_size}));
    if (bias == "per_head")
      file.tensors.emplace_back(layer_name(i, "dms_proj_alpha.bias"), at::zeros({a.num_kv_heads}));
  }
  return file;
}

AdapterFile neuron(const Architecture& a, int64_t channel) {
  AdapterFile file;
  file.adapter = "neuron";
  file.bias = "none";
  file.window = 512;
  file.decision_shift = 0;
  for (int64_t i = 0; i < a.num_layers; ++i) {
    at::Tensor index_G2 = at::empty({a.num_kv_heads, 2}, at::kLong);
    index_G2.select(1, 0).copy_(at::arange(a.num_kv_heads, at::kLong) * a.group_size());
    index_G2.select(1, 1).fill_(channel);
    file.tensors.emplace_back(layer_name(i, "dms_neuron.weight"), at::ones({a.num_kv_heads, a.hidden_size}));
    file.tensors.emplace_back(layer_name(i, "dms_neuron.index"), index_G2);
  }
  return file;
}

std::string objection(const std::string& target, const Architecture& a, const AdapterFile& adapters) {
  return find_export_target(target).objection(a, adapters);
}

// --- sidecar ---

TEST(Sidecar, OfAnEightBillionModelStaysBelowSixMegabytes) {
  const Architecture shapes[] = {architecture_of("qwen3", 36, 4096, 32, 8, 128),
                                 architecture_of("llama", 32, 4096, 32, 8, 128)};
  for (const Architecture& a : shapes) {
    for (const AdapterFile& adapters : {linear(a, "per_head"), neuron(a, a.head_dim - 1)}) {
      const TemporaryDirectory dir;
      ExportInput input;
      input.architecture = a;
      input.adapters = adapters;
      input.adapters.base_sha256 = std::string(64, 'a');
      find_export_target("sidecar").write(input, dir.path());
      uint64_t bytes = 0;
      for (const auto& entry : fs::directory_iterator(dir.path())) bytes += entry.file_size();
      EXPECT_LT(bytes, 6'000'000U) << a.family.model_type << " " << adapters.adapter;
      EXPECT_GT(bytes, 4'000'000U);
      EXPECT_EQ(read_adapter_file(dir.path(), a, std::string(64, 'a')).tensors.size(), adapters.tensors.size());
      EXPECT_TRUE(says(user_error_of([&] { read_adapter_file(dir.path(), a, std::string(64, 'b')); }),
                       "belong to another base model"));
    }
  }
}

// --- one offset for all heads ---

TEST(CommonOffset, DecidesAlikeForEveryHead) {
  const Architecture a = architecture_of("llama", 2, 16, 4, 2, 4);
  AdapterFile file = linear(a, "per_head");
  file.alpha_offset = 5.0;
  find_tensor(file.tensors, layer_name(0, "dms_proj_alpha.bias"))->copy_(at::tensor({4.0F, -20.0F}));
  find_tensor(file.tensors, layer_name(1, "dms_proj_alpha.bias"))->copy_(at::tensor({0.0F, 2.5F}));
  const auto common = common_offset(file, a);
  ASSERT_TRUE(common.has_value());
  EXPECT_NEAR(common->offset, std::pow(1.0 * 25.0 * 5.0 * 2.5, 0.25), 1e-12);
  // x at the threshold of each head: scale x = offset - bias.
  const at::Tensor threshold_LG = at::tensor({1.0, 25.0, 5.0, 2.5}, at::kDouble).view({2, 2});
  EXPECT_TRUE(at::allclose(common->row_scale_LG * threshold_LG, at::full({2, 2}, common->offset, at::kDouble)));
  EXPECT_TRUE((common->row_scale_LG > 0).all().item<bool>());

  find_tensor(file.tensors, layer_name(1, "dms_proj_alpha.bias"))->copy_(at::tensor({6.0F, 2.5F}));
  EXPECT_FALSE(common_offset(file, a).has_value());  // one head evicts unless told otherwise
  for (int64_t i : {0, 1}) find_tensor(file.tensors, layer_name(i, "dms_proj_alpha.bias"))->fill_(9.0);
  EXPECT_NEAR(common_offset(file, a)->offset, -4.0, 1e-12);  // all do
  EXPECT_EQ(common_offset(linear(a), a)->offset, 5.0);
}

// --- objections, with and without tensors ---

TEST(Objections, SayWhichOptionMakesItPossible) {
  const Architecture llama = architecture_of("llama", 2, 64, 4, 2, 16),
                     qwen3 = architecture_of("qwen3", 2, 64, 4, 2, 16);
  EXPECT_EQ(objection("fastdms", llama, neuron(llama, 15)), "");
  EXPECT_EQ(objection("fastdms", llama, neuron(llama, 7)), "") << "the other channel of the last pair turns there";
  EXPECT_TRUE(says(objection("fastdms", qwen3, neuron(qwen3, 7)), "adapter.channel: last"));
  EXPECT_EQ(objection("fastdms", qwen3, neuron(qwen3, 15)), "");
  EXPECT_TRUE(says(objection("fastdms", llama, linear(llama)), "adapter.kind: neuron"));
  EXPECT_TRUE(says(objection("nvidia", llama, linear(llama)), "qwen3 models only"));
  EXPECT_EQ(objection("nvidia", qwen3, linear(qwen3)), "");
  for (const auto& [type, on_llama, on_qwen3] : {std::tuple{RopeType::plain, true, true},
                                                 {RopeType::linear, true, false},
                                                 {RopeType::llama3, true, false},
                                                 {RopeType::yarn, false, false}}) {
    Architecture scaled_llama = llama, scaled_qwen3 = qwen3;
    scaled_llama.rope.type = scaled_qwen3.rope.type = type;
    EXPECT_EQ(objection("fastdms", scaled_llama, neuron(llama, 15)).empty(), on_llama);
    EXPECT_EQ(objection("fastdms", scaled_qwen3, neuron(qwen3, 15)).empty(), on_qwen3);
  }

  AdapterFile untrained = neuron(llama, 15);
  untrained.tensors.clear();
  EXPECT_TRUE(says(objection("fastdms", llama, untrained), "adapter.channel: last"));
  AdapterFile biased = linear(qwen3, "per_head");
  EXPECT_EQ(objection("nvidia", qwen3, biased), "") << "equal thresholds";
  biased.tensors.clear();
  EXPECT_TRUE(says(objection("nvidia", qwen3, biased), "adapter.bias: none"));
  for (const char* target : {"hf", "sidecar", "kvpress"}) {
    EXPECT_EQ(objection(target, llama, untrained), "") << target;
    EXPECT_EQ(objection(target, qwen3, biased), "") << target;
  }
  untrained.zero_after_rope = true;
  EXPECT_TRUE(says(objection("kvpress", llama, untrained), "adapter.zero_after_rope: false"));
}

// --- weights with the borrowed channel in them ---

TEST(FixedNeuron, LeavesEveryOtherTensorAndRowAsItWas) {
  const TemporaryDirectory dir;
  const std::string base = dir / "base", out = dir / "out";
  write_tiny_model(base);  // H = 4, G = 2, d = 8
  const Architecture a = read_architecture(base);
  ExportInput input;
  input.model_dir = base;
  input.adapters_dir = base;
  input.architecture = a;
  input.adapters = neuron(a, a.head_dim - 1);
  find_tensor(input.adapters.tensors, layer_name(0, "dms_neuron.index"))
      ->copy_(at::tensor({0, 7, 3, 7}, at::kLong).view({2, 2}));
  write_export(find_export_target("fastdms"), input, out, false);

  EXPECT_FALSE(fs::exists(out + "/model.safetensors.index.json"));
  const auto before = SafetensorsFile::open(base + "/model.safetensors");
  const auto after = SafetensorsFile::open(out + "/model.safetensors");
  ASSERT_EQ(after->entries().size(), before->entries().size());
  const at::Tensor row = at::ones({a.hidden_size});
  for (const SafetensorsEntry& entry : before->entries()) {
    at::Tensor expected = before->tensor(entry.name).clone();
    const bool first_layer = entry.name.starts_with("model.layers.0.");
    if (entry.name.ends_with("q_proj.weight")) {
      if (first_layer) expected = at::cat({expected.slice(0, 0, 16), expected.slice(0, 24), expected.slice(0, 16, 24)});
      expected[7] = row;
      expected[23] = row;
    } else if (entry.name.ends_with("o_proj.weight") && first_layer) {
      expected = at::cat({expected.slice(1, 0, 16), expected.slice(1, 24), expected.slice(1, 16, 24)}, 1);
    }
    EXPECT_TRUE(at::equal(after->tensor(entry.name), expected)) << entry.name;
  }
  const auto metadata = nlohmann::json::parse(read_file(out + "/dms_metadata.json"));
  EXPECT_EQ(metadata["window_size"], 512);
  EXPECT_EQ(metadata["alpha_scale"], 100.0);
  EXPECT_EQ(metadata["alpha_offset"], 5.0);
}

TEST(FixedNeuron, RoundsOnlyWhatItChangesInHalfPrecision) {
  const Architecture a = architecture_of("llama", 1, 16, 2, 1, 4);
  AdapterFile file = neuron(a, 3);
  file.tensors.emplace_back(layer_name(0, "dms_neuron.angle"), at::tensor({0.3F}));
  file.tensors[0].second.fill_(1.0F + 1.0F / 512);  // not a bfloat16
  const at::Tensor base = at::randn({8, 16}).to(at::kBFloat16);
  const at::Tensor edited = fixed_neuron_edit(file, a)(layer_name(0, "q_proj.weight"), base);
  EXPECT_EQ(edited.scalar_type(), at::kBFloat16);
  for (int64_t unturned : {0, 2, 4, 6}) EXPECT_TRUE(at::equal(edited[unturned], base[unturned]));
  EXPECT_TRUE(at::allclose(edited[3].to(at::kFloat), at::full({16}, 1.0F), 0, 4e-3));
  // A turn keeps the pair's length.
  const auto energy = [](const at::Tensor& rows) { return at::sum(at::square(rows.to(at::kFloat))).item<double>(); };
  EXPECT_NEAR(energy(edited[5]) + energy(edited[7]), energy(base[5]) + energy(base[7]), 0.2);
  EXPECT_FALSE(at::equal(edited[5], base[5]));
  EXPECT_FALSE(fixed_neuron_edit(file, a)("model.norm.weight", base).defined());
}

// --- nvidia ---

TEST(Nvidia, AddsItsTwoTensorsALayerToUntouchedBaseFiles) {
  const TemporaryDirectory dir;
  const std::string base = dir / "base", out = dir / "out";
  write_tiny_model(base);
  ExportInput input;
  input.model_dir = base;
  input.adapters_dir = base;
  input.architecture = read_architecture(base);
  input.adapters = linear(input.architecture, "per_head");
  fs::create_directory(out);
  find_export_target("nvidia").write(input, out);  // Llama weights: what a family needs is not the point here
  EXPECT_EQ(read_file(out + "/model-base.safetensors"), read_file(base + "/model.safetensors"));
  const auto added = SafetensorsFile::open(out + "/model-adapters.safetensors");
  EXPECT_EQ(added->entries().size(), 4U);
  EXPECT_EQ(added->find(layer_name(1, "dms_proj_alpha.bias")), nullptr);
  const auto config = nlohmann::json::parse(read_file(out + "/config.json"));
  EXPECT_EQ(config["dms_separate_alpha"], true);
  EXPECT_EQ(config["dms_window_size"], 512);
  EXPECT_DOUBLE_EQ(config["dms_initial_alpha_offset"].get<double>(), 5.0);
  EXPECT_EQ(config["architectures"], nlohmann::json({"Qwen3ForCausalLMDMS"}));
}

// --- kvpress ---

TEST(Kvpress, IsAnAdapterDirectoryWithOneFileOfPython) {
  const TemporaryDirectory dir;
  ExportInput input;
  input.architecture = architecture_of("llama", 2, 64, 4, 2, 16);
  input.adapters = linear(input.architecture);
  input.adapters.base_model = "owner/tiny";
  find_export_target("kvpress").write(input, dir.path());
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(dir.path())) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names,
            (std::vector<std::string>{"README.md", "adapters.safetensors", "dms_config.json", "dms_kvpress.py"}));
  EXPECT_TRUE(says(read_file(dir.path() + "/README.md"), "A trained evictor for owner/tiny"));
}

}  // namespace
}  // namespace dms
