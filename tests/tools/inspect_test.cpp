#include "tools/inspect.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "checkpoints/adapter_file.h"
#include "checkpoints/export.h"
#include "checkpoints/model_dir.h"
#include "checkpoints/run_dir.h"
#include "data/staged_file.h"
#include "data/token_file_writer.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/tiny_model.h"
#include "tests/support/user_error_of.h"
#include "trainer/metrics.h"

namespace dms {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

class Inspect : public ::testing::Test {
 protected:
  std::string path(const std::string& name) const { return directory_ / name; }

  // Adapters for the tiny model in path("model"), whose biases are -1.5 and 2.5 in every layer.
  AdapterFile adapters() const {
    AdapterFile file;
    file.adapter = "linear";
    file.bias = "per_head";
    file.window = 16;
    file.target_cr = 6.5;
    file.base_model = "Tiny";
    file.base_sha256 = base_model_hash(path("model"));
    const Architecture a = read_architecture(path("model"));
    for (int64_t i = 0; i < a.num_layers; ++i) {
      const std::string prefix = "model.layers." + std::to_string(i) + ".self_attn.dms_proj_alpha";
      file.tensors.emplace_back(prefix + ".weight", at::zeros({a.num_kv_heads, a.hidden_size}));
      file.tensors.emplace_back(prefix + "_norm.weight", at::ones({a.hidden_size}));
      file.tensors.emplace_back(prefix + ".bias", at::tensor({-1.5F, 2.5F}));
    }
    return file;
  }

  void write_checkpoint(int64_t step) const {
    const std::string dir = checkpoint_path(path("run"), step);
    fs::create_directories(dir);
    write_adapter_file(dir, adapters());
    write_manifest(dir, step);
  }

  void write_run() const {
    fs::create_directories(path("run"));
    write_file(path("run/recipe.yaml"),
               "model:\n  path: models/tiny\nadapter:\n  kind: linear\neviction:\n  window: 16\n"
               "trainer:\n  steps: 40\n  global_batch: 2\n  sequence_length: 128\n");
    MetricsLog log(path("run"), 0);
    for (int64_t step = 0; step < 3; ++step) {
      log.append({.step = step, .loss = 0.5, .target_cr = 4, .peak_memory_bytes = 3 << 20});
    }
  }

  TemporaryDirectory directory_;
};

TEST_F(Inspect, AModelDirectoryTellsItsDimensions) {
  write_tiny_model(path("model"));
  ordered_json model = inspect(path("model") + "/");
  EXPECT_EQ(model["kind"], "model directory");
  EXPECT_EQ(model["path"], path("model") + "/");
  EXPECT_EQ(model["family"], "llama");
  EXPECT_EQ(model["layers"], 2);
  EXPECT_EQ(model["query_heads"], 4);
  EXPECT_EQ(model["kv_heads"], 2);
  EXPECT_EQ(model["dtype"], "F32");
  EXPECT_EQ(model["kv_cache_bytes_per_token"], 2 * 2 * 2 * 8 * 4);
  EXPECT_EQ(model["weight_bytes"], fs::file_size(path("model/model.safetensors")));
  EXPECT_EQ(model["tokenizer_sha256"], sha256_file(path("model/tokenizer.json")));
  ASSERT_EQ(model["files"].size(), 1u);
  EXPECT_EQ(model["files"][0]["file"], "model.safetensors");
  // Embedding and, per layer, q k v o, gate up down, two norms; one norm at the end.
  EXPECT_EQ(model["files"][0]["tensors"], 1 + 2 * 9 + 1);
  EXPECT_EQ(model["parameters"], 300 * 32 + 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32) + 32);
}

TEST_F(Inspect, AModelWithAMissingTensorIsAnError) {
  write_tiny_model(path("model"));
  std::vector<RawTensor> tensors = tiny_model_tensors({});
  const std::string dropped = tensors.back().name;
  tensors.pop_back();
  write_test_file(path("model/model.safetensors"), safetensors_bytes(tensors));
  EXPECT_TRUE(says(user_error_of([&] { inspect(path("model")); }), dropped));
}

TEST_F(Inspect, ATokenFileTellsItsDocumentsAndSources) {
  TokenFileInfo info;
  info.created_by = "inspect_test";
  info.vocab_size = 1000;
  info.tokenizer_sha256 = std::string(64, 'a');
  info.sources = {{"a.txt", std::string(64, '1'), 10}, {"ü.txt", std::string(64, '2'), 20}};
  info.options_json = R"({"min_tokens":2})";
  info.has_loss_mask = true;
  TokenFileWriter writer(path("text.h5"), info);
  for (const size_t length : {5, 1, 30}) {
    std::vector<uint8_t> mask(length, 1);
    mask[0] = 0;
    writer.add_document(std::vector<uint32_t>(length, 7), length % 2, 1, mask);
  }
  writer.finish();
  ordered_json file = inspect(path("text.h5"));
  EXPECT_EQ(file["kind"], "token file");
  EXPECT_EQ(file["tokens"], 36);
  EXPECT_EQ(file["counted_tokens"], 33);
  EXPECT_EQ(file["documents"], 3);
  EXPECT_EQ(file["document_tokens"], (ordered_json{{"shortest", 1}, {"median", 5}, {"longest", 30}}));
  EXPECT_EQ(file["sources"], (ordered_json{"a.txt", "ü.txt"}));
  EXPECT_EQ(file["attributes"]["created_by"], "inspect_test");
  EXPECT_EQ(file["attributes"]["options"]["min_tokens"], 2);

  // Known by its first bytes, not only by its name; a file that only has the name is an error.
  fs::rename(path("text.h5"), path("text.tokens"));
  EXPECT_EQ(inspect(path("text.tokens"))["tokens"], 36);
  write_test_file(path("fake.h5"), "hello");
  EXPECT_TRUE(says(user_error_of([&] { inspect(path("fake.h5")); }), "fake.h5: "));
  EXPECT_FALSE(says(user_error_of([&] { inspect(path("fake.h5")); }), "is nothing that"));
}

TEST_F(Inspect, AdaptersTellTheirSettingsAndThresholds) {
  write_tiny_model(path("model"));
  fs::create_directory(path("adapters"));
  write_adapter_file(path("adapters"), adapters());
  ordered_json found = inspect(path("adapters"));
  EXPECT_EQ(found["kind"], "adapter directory");
  EXPECT_EQ(found["adapter"], "linear");
  EXPECT_EQ(found["window"], 16);
  EXPECT_EQ(found["alpha_scale"], 100.0);
  EXPECT_EQ(found["alpha_offset"], 5.0);
  EXPECT_EQ(found["base_sha256"], base_model_hash(path("model")));
  EXPECT_EQ(found["layers"], 2);
  EXPECT_EQ(found["trained_parameters"], 2 * (2 * 32 + 32 + 2));
  EXPECT_EQ(found["bias_range"], (ordered_json{-1.5, 2.5}));

  write_file(path("adapters/dms_config.json"), R"({"format":"dms-adapters","version":2})");
  EXPECT_TRUE(says(user_error_of([&] { inspect(path("adapters")); }), "is not the description of version 1 adapters"));
}

TEST_F(Inspect, ARunTellsHowFarItWentAndWhichCheckpointsHold) {
  write_tiny_model(path("model"));
  write_run();
  write_checkpoint(1);
  write_checkpoint(2);
  write_test_file(checkpoint_path(path("run"), 2) + "/adapters.safetensors", "damaged");
  ordered_json run = inspect(path("run"));
  EXPECT_EQ(run["kind"], "run directory");
  EXPECT_EQ(run["recipe_sha256"], sha256_file(path("run/recipe.yaml")));
  EXPECT_EQ(run["model"], "models/tiny");
  EXPECT_EQ(run["tokens_per_step"], 256);
  EXPECT_EQ(run["steps_planned"], 40);
  EXPECT_EQ(run["steps_done"], 3);
  EXPECT_EQ(run["last_step"]["step"], 2);
  EXPECT_EQ(run["last_step"]["target_eviction_rate"], 0.75);
  ASSERT_EQ(run["checkpoints"].size(), 2u);
  EXPECT_EQ(run["checkpoints"][0]["step"], 2);
  EXPECT_NE(run["checkpoints"][0]["state"].get<std::string>().find("'adapters.safetensors' has 7 bytes"),
            std::string::npos);
  EXPECT_EQ(run["checkpoints"][1], (ordered_json{{"step", 1}, {"state", "complete"}}));
  EXPECT_EQ(run["newest_checkpoint"]["base_model"], "Tiny");

  EXPECT_EQ(inspect(checkpoint_path(path("run"), 1))["kind"], "checkpoint");
  EXPECT_EQ(inspect(checkpoint_path(path("run"), 1))["window"], 16);
  ordered_json damaged = inspect(checkpoint_path(path("run"), 2));
  EXPECT_EQ(damaged["integrity"], run["checkpoints"][0]["state"]);
  EXPECT_FALSE(damaged.contains("window"));
  fs::remove(checkpoint_path(path("run"), 2) + "/manifest.json");
  fs::remove(checkpoint_path(path("run"), 2) + "/dms_config.json");
  EXPECT_EQ(inspect(checkpoint_path(path("run"), 2) + "/")["integrity"], "has no manifest.json: it was not finished");
}

TEST_F(Inspect, AnExportIsToldFromAModel) {
  write_tiny_model(path("model"));
  fs::create_directory(path("adapters"));
  write_adapter_file(path("adapters"), adapters());
  write_export(find_export_target("hf"), read_export_input(path("model"), path("adapters")), path("export"), false);
  ordered_json found = inspect(path("export"));
  EXPECT_EQ(found["kind"], "export for transformers");
  EXPECT_EQ(found["family"], "llama");
  EXPECT_EQ(found["layers"], 2);
  EXPECT_EQ(found["kv_heads"], 2);
  EXPECT_EQ(found["dms"]["window"], 16);
  EXPECT_EQ(found["dms"]["base_model"], "Tiny");
  EXPECT_EQ(found["files"].size(), 2u);
}

TEST_F(Inspect, AnythingElseIsAnErrorThatListsWhatIsKnownAndWhatIsInside) {
  write_run();
  write_test_file(path("notes.txt"), "hello");
  EXPECT_TRUE(says(user_error_of([&] { inspect(path("nowhere")); }), "nowhere: does not exist"));
  EXPECT_TRUE(says(user_error_of([&] { inspect(path("notes.txt")); }),
                   "is nothing that `dms inspect` knows\n"
                   "  it knows:\n"
                   "    run directory (recipe.yaml)\n"
                   "    checkpoint (manifest.json and dms_config.json)\n"
                   "    adapter directory (dms_config.json)\n"
                   "    export for transformers (config.json with a dms_* model type)\n"
                   "    model directory (config.json)\n"
                   "    token file (HDF5, made by `dms prepare`)"));
  EXPECT_TRUE(says(user_error_of([&] { inspect(directory_.path()); }), "inside: " + path("run") + ", a run directory"));
  fs::create_directory(path("other"));
  write_test_file(path("other/manifest.json"), "{}");  // somebody else's manifest
  EXPECT_TRUE(says(user_error_of([&] { inspect(path("other")); }), "is nothing that `dms inspect` knows"));
}

TEST(DescriptionText, IsAReadableRenderingOfTheSameObject) {
  const ordered_json description = {{"kind", "thing"},
                                    {"path", "some/where"},
                                    {"tokens", 123456},
                                    {"file_bytes", 2048},
                                    {"tied_embeddings", true},
                                    {"loss", nullptr},
                                    {"mean", 0.25},
                                    {"sources", {"a", "b"}},
                                    {"nothing", ordered_json::array()},
                                    {"nested", {{"x", 1}, {"long_name", "y"}}},
                                    {"files", {{{"file", "f"}, {"bytes", 1024}}, {{"file", "g"}, {"bytes", 1}}}}};
  EXPECT_EQ(description_text(description),
            "some/where: thing\n"
            "  tokens           123,456\n"
            "  file bytes       2.00 KiB\n"
            "  tied embeddings  yes\n"
            "  loss             unknown\n"
            "  mean             0.2500\n"
            "  sources          a, b\n"
            "  nothing          none\n"
            "  nested\n"
            "    x          1\n"
            "    long name  y\n"
            "  files\n"
            "    file f, bytes 1.00 KiB\n"
            "    file g, bytes 1 B\n");
}

TEST(DescriptionText, CutsLongLists) {
  std::string all = "p: k\n  numbers  ";
  for (int i = 0; i < 20; ++i) all += "0, ";
  const ordered_json description = {{"kind", "k"}, {"path", "p"}, {"numbers", std::vector<int>(25)}};
  EXPECT_EQ(description_text(description), all + "and 5 more\n");
}

}  // namespace
}  // namespace dms
