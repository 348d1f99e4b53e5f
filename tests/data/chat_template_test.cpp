#include "data/chat_template.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/staged_file.h"
#include "tests/support/temporary_directory.h"
#include "tests/support/user_error_of.h"

namespace dms {
namespace {

const Conversation kReasoned = {{"user", "1+1?"}, {"assistant", "<think>\neasy\n</think>\n\n2"}};

class ChatTemplateTest : public testing::Test {
 protected:
  void set_model(const std::string& bos, const std::string& template_text) const {
    nlohmann::json config = {{"bos_token", bos}};
    if (!template_text.empty()) config["chat_template"] = template_text;
    write_file(directory_ / "tokenizer_config.json", config.dump());
  }
  std::shared_ptr<const ChatTemplate> load(const std::string& name,
                                           const std::string& python = "/nowhere/python3") const {
    ChatOptions options;
    options.name = name;
    options.python = python;
    return ChatTemplate::load(directory_.path(), options);
  }
  // The text with what the assistant wrote in {}.
  std::string rendered(const std::string& name, const Conversation& conversation, bool prompt = false) const {
    const RenderedChat chat = load(name)->render(conversation, prompt);
    std::string text = chat.text;
    for (auto span = chat.assistant.rbegin(); span != chat.assistant.rend(); ++span) {
      text.insert(span->end, "}").insert(span->begin, "{");
    }
    return text;
  }

  TemporaryDirectory directory_;
};

TEST_F(ChatTemplateTest, ThinkingIsSwitchedWhereATemplateHasTheSwitch) {
  set_model("", "");
  ChatOptions options;
  options.name = "qwen3";
  options.thinking = false;
  const std::string open = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n";
  EXPECT_EQ(ChatTemplate::load(directory_.path(), options)->render({{"user", "a"}}, true).text,
            open + "<think>\n\n</think>\n\n");
  options.thinking = true;
  EXPECT_EQ(ChatTemplate::load(directory_.path(), options)->render({{"user", "a"}}, true).text, open);
  options.name = "chatml";
  EXPECT_NE(user_error_of([&] { ChatTemplate::load(directory_.path(), options); }).find("--thinking: "),
            std::string::npos);
  EXPECT_FALSE(has_chat_template(directory_.path()));
  set_model("", "{{ messages }}");
  EXPECT_TRUE(has_chat_template(directory_.path()));
}

TEST_F(ChatTemplateTest, BuiltInFamiliesMarkTheAssistantsWords) {
  set_model("<bos>", "");
  EXPECT_EQ(rendered("chatml", kReasoned),
            "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n{<think>\neasy\n</think>\n\n2<|im_end|>}\n");
  EXPECT_EQ(rendered("qwen3", {{"user", "a"}, {"assistant", "b"}}, true),
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n{<think>\n\n</think>\n\nb<|im_end|>}\n"
            "<|im_start|>assistant\n");
  EXPECT_EQ(
      rendered("llama3", {{"system", " s "}, {"user", "a\n"}, {"assistant", "\u3000b\u00a0"}}),
      "<bos><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul "
      "2024\n\ns<|eot_id|><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>"
      "<|start_header_id|>assistant<|end_header_id|>\n\n{b<|eot_id|>}");
  EXPECT_EQ(rendered("r1", kReasoned), "<bos><｜User｜>1+1?<｜Assistant｜>{\n\n2<｜end▁of▁sentence｜>}");
  EXPECT_EQ(rendered("r1-raw", kReasoned),
            "<bos><｜User｜>1+1?<｜Assistant｜>{<think>\neasy\n</think>\n\n2<｜end▁of▁sentence｜>}");
}

TEST_F(ChatTemplateTest, Qwen3KeepsReasoningOnlyAfterTheLastQuestion) {
  set_model("", "");
  Conversation twice = kReasoned;
  twice.insert(twice.end(), kReasoned.begin(), kReasoned.end());
  EXPECT_EQ(rendered("qwen3", twice),
            "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n{2<|im_end|>}\n"
            "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n{<think>\neasy\n</think>\n\n2<|im_end|>}\n");
}

TEST_F(ChatTemplateTest, TheDefaultSystemTurnIsTheModelsOwn) {
  const std::string own =
      "{{ '<|im_start|>system\\n' + x + '<|im_end|>' }}{{ '<|im_start|>system\nYou are Smol.<|im_end|>\n' }}";
  set_model("", own);
  EXPECT_EQ(rendered("chatml", {{"user", "a"}}),
            "<|im_start|>system\nYou are Smol.<|im_end|>\n<|im_start|>user\na<|im_end|>\n");
  EXPECT_EQ(rendered("chatml", {{"system", "b"}, {"user", "a"}}),
            "<|im_start|>system\nb<|im_end|>\n<|im_start|>user\na<|im_end|>\n");
}

TEST_F(ChatTemplateTest, WithoutPythonAFamilyIsToldByItsMarks) {
  set_model("", "<|im_start|> <|im_end|>");
  EXPECT_EQ(load("auto")->name(), "chatml");
  set_model("", "<|im_start|> <|im_end|> </think>");
  EXPECT_EQ(load("auto")->name(), "qwen3");
  set_model("", "<｜User｜><｜Assistant｜> </think>");
  EXPECT_EQ(load("auto")->name(), "r1-raw");
  set_model("", "[INST]");
  EXPECT_TRUE(says(user_error_of([&] { load("auto"); }), "needs a Python with jinja2, and '/nowhere/python3' is none"));
  EXPECT_TRUE(says(user_error_of([&] { load("jinja"); }), "name a built-in template"));
}

TEST_F(ChatTemplateTest, WrongInputIsRefused) {
  set_model("", "");
  EXPECT_TRUE(says(user_error_of([&] { load("auto"); }), "has no chat template, which conversations need"));
  EXPECT_TRUE(says(user_error_of([&] { load("qwen"); }), "did you mean 'qwen3'?"));
  EXPECT_TRUE(says(user_error_of([&] { rendered("r1", {{"tool", "x"}}); }), "a message of role 'tool'"));
  write_file(directory_ / "tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "x"}]})");
  EXPECT_TRUE(says(user_error_of([&] { load("auto"); }), "a list that names a default one"));
  write_file(directory_ / "tokenizer_config.json", R"({"chat_template": "old"})");
  write_file(directory_ / "chat_template.jinja", "<|im_start|> <|im_end|>");  // wins
  EXPECT_EQ(load("auto")->name(), "chatml");
}

}  // namespace
}  // namespace dms
