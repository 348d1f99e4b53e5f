// The recipes that come with the program: each can be read, fits the model that it is for, and says what it claims.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "trainer/compression.h"
#include "trainer/recipe.h"

namespace dms {
namespace {

namespace fs = std::filesystem;

std::set<std::string> names_in(const fs::path& directory, const std::string& extension) {
  std::set<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    if (entry.path().extension() == extension) names.insert(entry.path().stem().string());
  }
  return names;
}

Architecture released(const std::string& name) {
  std::ifstream file(fs::path(DMS_TEST_CONFIGS) / (name + ".json"));
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return parse_architecture(text, name);
}

std::set<std::string> target_models() {
  std::set<std::string> names = names_in(DMS_TEST_CONFIGS, ".json");
  names.erase("smollm2-135m");   // the quickstart's
  names.erase("qwen3-4b-2507");  // the same recipe as qwen3-4b
  return names;
}

TEST(RecipeFiles, EveryTargetModelHasOursAndTheOfficialOne) {
  EXPECT_EQ(names_in(fs::path(DMS_RECIPES) / "official", ".yaml"), target_models());
  std::set<std::string> ours = names_in(DMS_RECIPES, ".yaml");
  EXPECT_EQ(ours.erase("smollm2-135m"), 1u);
  EXPECT_EQ(ours, target_models());
}

TEST(RecipeFiles, EachFitsItsModel) {
  for (const std::string folder : {"", "official/"}) {
    for (const std::string& name : target_models()) {
      SCOPED_TRACE(folder + name);
      const Recipe recipe = read_recipe(std::string(DMS_RECIPES) + "/" + folder + name + ".yaml", {});
      const Architecture model = released(name);
      EXPECT_LE(recipe.trainer.sequence_length, model.max_positions);
      EXPECT_EQ(recipe.trainer.dtype, ComputeDtype::bfloat16);
      // models/NAME ends in the model's own name, whatever its publisher puts before it.
      std::string directory;
      for (const char c : recipe.model_path) directory += static_cast<char>(std::tolower(c));
      EXPECT_NE(directory.find(name), std::string::npos) << recipe.model_path;
    }
  }
}

// formats of NVIDIA's trainer: CR(step) = 1 + 15 min(step / 510, 1), window 512, straight-through counts, reverse KL.
TEST(RecipeFiles, TheOfficialScheduleIsNvidias) {
  for (const std::string& name : target_models()) {
    SCOPED_TRACE(name);
    const Recipe recipe = read_recipe(std::string(DMS_RECIPES) + "/official/" + name + ".yaml", {});
    EXPECT_EQ(compression_ratio_at(recipe.compression, 0), 1.0);
    EXPECT_DOUBLE_EQ(compression_ratio_at(recipe.compression, 238), 8.0);
    EXPECT_EQ(compression_ratio_at(recipe.compression, 510), 16.0);
    EXPECT_EQ(compression_ratio_at(recipe.compression, 543), 16.0);
    EXPECT_EQ(recipe.trainer.steps, 544);
    EXPECT_EQ(recipe.trainer.checkpoint_every * 7, 238);
    EXPECT_EQ(recipe.eviction.window, 512);
    EXPECT_EQ(recipe.adapter.bias, AdapterBias::none);
    EXPECT_EQ(recipe.compression.count, CompressionCount::straight_through);
    EXPECT_EQ(recipe.distillation.kl, KlDirection::reverse);
    EXPECT_EQ(recipe.warm_start.tokens, 0);
    const bool small = recipe.trainer.sequence_length == 8192;
    EXPECT_EQ(recipe.trainer.sequence_length * recipe.trainer.global_batch, small ? 8192 * 128 : 32768 * 8);
  }
}

}  // namespace
}  // namespace dms
