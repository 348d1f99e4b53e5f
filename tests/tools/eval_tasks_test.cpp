// `dms eval-tasks`: what it asks, that it goes on where it stopped, and that it mixes nothing.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "tests/support/child_process.h"
#include "tests/support/sandbox.h"
#include "tests/tools/valid_inputs.h"

namespace dms {
namespace {

using nlohmann::json;

constexpr const char* kQuestions =
    "{\"problem\": \"the man\", \"answer\": \"1\"}\n"
    "{\"problem\": \"a hat\", \"answer\": \"2\"}\n"
    "{\"problem\": \"the sea\", \"answer\": \"3\"}\n";
const std::string kCommand =
    "eval-tasks --model model --adapters run --task aime --data q.jsonl --samples 2 --temperature 1 --max-new-tokens "
    "8 ";

ChildResult run_in(Sandbox& sandbox, const std::string& command) {
  ChildOptions options;
  options.directory = sandbox.path();
  options.environment = {"OMP_NUM_THREADS=1"};
  return run_child(command_line(command), options);
}

// Lines of a results file: the conditions, then completions by item and sample.
std::vector<json> lines_of(const std::string& text) {
  std::vector<json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(json::parse(line));
  std::sort(lines.begin() + 1, lines.end(), [](const json& a, const json& b) {
    return std::pair(a.at("item"), a.at("sample")) < std::pair(b.at("item"), b.at("sample"));
  });
  return lines;
}

TEST(EvalTasks, GoesOnWhereItStoppedWithTheSameAnswers) {
  Sandbox sandbox(valid_files());
  sandbox.write("q.jsonl", kQuestions);
  ASSERT_EQ(run_in(sandbox, kCommand + "--out all.jsonl --json all.json").exit_code, 0);
  ASSERT_EQ(run_in(sandbox, kCommand + "--out parts.jsonl --limit 1").exit_code, 0);
  // As a kill leaves it: in the middle of a line.
  const std::string first = sandbox.read("parts.jsonl");
  sandbox.write("parts.jsonl", first.substr(0, first.size() - 20));
  const ChildResult rest = run_in(sandbox, kCommand + "--out parts.jsonl --max-batch 1 --json parts.json");
  ASSERT_EQ(rest.exit_code, 0) << rest.err;
  EXPECT_NE(rest.err.find("1 completions are there already, 5 to go"), std::string::npos) << rest.err;
  const auto all = lines_of(sandbox.read("all.jsonl"));
  ASSERT_EQ(all.size(), 7U);
  EXPECT_EQ(lines_of(sandbox.read("parts.jsonl")), all);
  EXPECT_EQ(json::parse(sandbox.read("parts.json")), json::parse(sandbox.read("all.json")));
  EXPECT_EQ(run_in(sandbox, kCommand + "--out all.jsonl").exit_code, 0) << "nothing left to ask";
  EXPECT_EQ(lines_of(sandbox.read("all.jsonl")), all);
}

TEST(EvalTasks, KeepsAnswersOfOneKindInAFile) {
  Sandbox sandbox(valid_files());
  sandbox.write("q.jsonl", kQuestions);
  ASSERT_EQ(run_in(sandbox, kCommand + "--out r.jsonl --limit 1").exit_code, 0);
  const std::string before = sandbox.read("r.jsonl");
  const ChildResult other = run_in(sandbox, kCommand + "--out r.jsonl --seed 5");
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_NE(
      other.err.find("r.jsonl: holds answers that were given under other conditions\n  seed was 0, now it would be 5"),
      std::string::npos)
      << other.err;
  sandbox.write("q.jsonl", std::string(kQuestions) + "{\"problem\": \"more\", \"answer\": \"4\"}\n");
  EXPECT_EQ(run_in(sandbox, kCommand + "--out r.jsonl").exit_code, 2) << "other questions";
  EXPECT_EQ(sandbox.read("r.jsonl"), before);
}

TEST(EvalTasks, AsksThroughTheChatTemplateWhenThereIsOne) {
  Sandbox sandbox(valid_files());
  sandbox.write("q.jsonl", kQuestions);
  const std::string command =
      "eval-tasks --model model --task aime --data q.jsonl --limit 1 --max-new-tokens 4 --no-chat --out ";
  ASSERT_EQ(run_in(sandbox, command + "plain.jsonl").exit_code, 0);
  json config = json::parse(sandbox.read("model/tokenizer_config.json"));
  config["chat_template"] =
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
  sandbox.write("model/tokenizer_config.json", config.dump());
  ASSERT_EQ(run_in(sandbox, command + "still-plain.jsonl").exit_code, 0);
  std::string chat_command = command;
  chat_command.erase(chat_command.find("--no-chat "), 10);
  ASSERT_EQ(run_in(sandbox, chat_command + "chat.jsonl").exit_code, 0);
  const auto plain = lines_of(sandbox.read("plain.jsonl")), chat = lines_of(sandbox.read("chat.jsonl"));
  EXPECT_EQ(lines_of(sandbox.read("still-plain.jsonl")), plain);
  EXPECT_EQ(plain[0].at("conditions").at("chat_template"), "");
  EXPECT_EQ(chat[0].at("conditions").at("chat_template").get<std::string>().substr(0, 7), "chatml ");
  EXPECT_GT(chat[1].at("prompt_tokens"), plain[1].at("prompt_tokens").get<int64_t>() + 10);
}

TEST(EvalTasks, SinksAndAWindowHoldAsManyKeysAsAsked) {
  Sandbox sandbox(valid_files());
  sandbox.write("q.jsonl", kQuestions);
  const std::string command = "eval-tasks --model model --task aime --data q.jsonl --no-chat --max-new-tokens 8 --out ";
  ASSERT_EQ(run_in(sandbox, command + "dense.jsonl").exit_code, 0);
  ASSERT_EQ(run_in(sandbox, command + "wide.jsonl --streaming-keys 100000").exit_code, 0);
  ASSERT_EQ(run_in(sandbox, command + "narrow.jsonl --streaming-keys 10").exit_code, 0);
  const auto dense = lines_of(sandbox.read("dense.jsonl")), wide = lines_of(sandbox.read("wide.jsonl")),
             narrow = lines_of(sandbox.read("narrow.jsonl"));
  for (size_t i = 1; i < dense.size(); ++i) {
    EXPECT_EQ(wide[i], dense[i]) << "a window that nothing leaves";
    // Everything that is generated but the last token is read again; each query reads 10 keys at most.
    const auto num_queries = [](const json& line) {
      return line.at("prompt_tokens").get<int64_t>() + line.at("new_tokens").get<int64_t>() - 1;
    };
    const int64_t all = num_queries(dense[i]), few = num_queries(narrow[i]);
    EXPECT_EQ(dense[i].at("keys_read").get<int64_t>() * (10 * (few - 10) + 55),
              narrow[i].at("keys_read").get<int64_t>() * (all * (all + 1) / 2));
  }
}

}  // namespace
}  // namespace dms
