#include "checkpoints/generation_config.h"

#include <gtest/gtest.h>

#include "recipes/user_error.h"
#include "tests/support/sandbox.h"

namespace dms {
namespace {

GenerationConfig read(const std::map<std::string, std::string>& files) {
  Sandbox sandbox(files);
  return read_generation_config(sandbox.path());
}

TEST(GenerationConfig, TakesOneStopTokenOrSeveral) {
  EXPECT_EQ(read({{"generation_config.json", R"({"eos_token_id": 2})"}}).stop_tokens, (std::vector<int32_t>{2}));
  EXPECT_EQ(read({{"generation_config.json", R"({"eos_token_id": [128001, 128008, 128009]})"}}).stop_tokens,
            (std::vector<int32_t>{128001, 128008, 128009}));
  EXPECT_TRUE(read({{"generation_config.json", R"({"eos_token_id": null})"}}).stop_tokens.empty());
}

TEST(GenerationConfig, FallsBackToTheModelsConfig) {
  EXPECT_EQ(read({{"config.json", R"({"eos_token_id": 7})"}}).stop_tokens, (std::vector<int32_t>{7}));
}

TEST(GenerationConfig, ReadsHowItsMakersSample) {
  const GenerationConfig config =
      read({{"generation_config.json", R"({"do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 20})"}});
  EXPECT_TRUE(config.do_sample);
  EXPECT_EQ(config.temperature, 0.6);
  EXPECT_EQ(config.top_p, 0.95);
  EXPECT_EQ(config.top_k, 20);
}

TEST(GenerationConfig, RefusesWrongTypes) {
  for (const char* text : {R"({"eos_token_id": "</s>"})", R"({"eos_token_id": [2, -1]})", R"({"do_sample": "yes"})",
                           R"({"temperature": "hot"})", R"({"top_k": -3})"}) {
    EXPECT_THROW(read({{"generation_config.json", text}}), UserError) << text;
  }
}

}  // namespace
}  // namespace dms
