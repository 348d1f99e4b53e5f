#include "data/chat_template.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/chat_families.h"
#include "data/jinja_process.h"
#include "data/sha256.h"
#include "data/staged_file.h"
#include "recipes/strict_json.h"
#include "recipes/user_error.h"

namespace dms {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// What a model directory says about its conversations.
struct ModelChat {
  std::string template_text;  // empty: none
  std::string bos;
  Json variables = Json::object();  // the special tokens' texts
};

// A template is a text, or a list of named ones, of which "default" is meant.
std::string template_of(const Json& value, const std::string& path) {
  if (value.is_string()) return value;
  if (value.is_array()) {
    for (const Json& entry : value) {
      if (entry.is_object() && entry.contains("name") && entry["name"] == "default" && entry.contains("template") &&
          entry["template"].is_string()) {
        return entry["template"];
      }
    }
  }
  throw UserError(path, "chat_template is " + shown(value), {"expected a text, or a list that names a default one"});
}

ModelChat read_model_chat(const std::string& model_dir) {
  ModelChat chat;
  const std::string config_path = model_dir + "/tokenizer_config.json", file = model_dir + "/chat_template.jinja";
  if (fs::exists(config_path)) {
    const Json config = read_json_object(config_path);
    for (const char* key : {"bos_token", "eos_token", "pad_token", "unk_token"}) {
      if (!config.contains(key) || config[key].is_null()) continue;
      const Json& token =
          config[key].is_object() && config[key].contains("content") ? config[key]["content"] : config[key];
      if (!token.is_string())
        throw UserError(config_path, std::string(key) + " is " + shown(token), {"expected a token"});
      chat.variables[key] = token;
    }
    chat.bos = chat.variables.value("bos_token", "");
    if (config.contains("chat_template") && !config["chat_template"].is_null()) {
      chat.template_text = template_of(config["chat_template"], config_path);
    }
  }
  if (fs::exists(file)) chat.template_text = read_file(file);
  return chat;
}

UserError no_thinking_switch(const std::string& name) {
  return {"--thinking",
          "the chat template '" + name + "' cannot be told whether to think",
          {"templates that can read the variable enable_thinking, as Qwen 3's does"}};
}

class BuiltInTemplate : public ChatTemplate {
 public:
  BuiltInTemplate(const ChatFamily& family, ModelChat model, const ChatOptions& options)
      : family_(family), model_(std::move(model)), date_string_(options.date_string) {
    if (options.thinking.has_value() && family_.no_thinking.empty()) throw no_thinking_switch(family_.name);
    if (options.thinking == false) answer_prefix_ = family_.no_thinking;
    if (!model_.template_text.empty()) sha256_ = sha256_hex(model_.template_text);
    system_ = default_system_of(model_.template_text);
  }
  RenderedChat render(const Conversation& conversation, bool add_generation_prompt) const override {
    RenderedChat chat = family_.render(conversation, add_generation_prompt, model_.bos, system_, date_string_);
    if (add_generation_prompt) chat.text += answer_prefix_;
    return chat;
  }
  const std::string& name() const override { return family_.name; }
  const std::string& sha256() const override { return sha256_; }

 private:
  const ChatFamily& family_;
  ModelChat model_;
  std::string date_string_, system_, answer_prefix_, sha256_;
};

class JinjaTemplate : public ChatTemplate {
 public:
  JinjaTemplate(std::unique_ptr<JinjaProcess> process, const std::string& template_text)
      : process_(std::move(process)), sha256_(sha256_hex(template_text)) {}
  RenderedChat render(const Conversation& conversation, bool add_generation_prompt) const override {
    return process_->render(conversation, add_generation_prompt);
  }
  const std::string& name() const override { return name_; }
  const std::string& sha256() const override { return sha256_; }

 private:
  std::unique_ptr<JinjaProcess> process_;
  std::string name_ = "jinja", sha256_;
};

const ChatFamily* family_by_name(const std::string& name) {
  for (const ChatFamily& family : chat_families()) {
    if (family.name == name) return &family;
  }
  return nullptr;
}

const ChatFamily* family_by_marks(const std::string& template_text) {
  for (const ChatFamily& family : chat_families()) {
    const auto is_there = [&](const std::string& mark) { return template_text.find(mark) != std::string::npos; };
    if (std::all_of(family.marks.begin(), family.marks.end(), is_there)) return &family;
  }
  return nullptr;
}

// Conversations on which two templates that differ show it: system turns, white space, reasoning in every place.
const std::vector<Conversation>& probes() {
  static const std::string kThought = "<think>\nfirst\n\nthen\n</think>\n\nanswer";
  static const std::vector<Conversation> kProbes = {
      {{"user", "question"}, {"assistant", "answer"}},
      {{"system", " be brief\n"}, {"user", "question "}, {"assistant", " answer\n"}},
      {{"user", "one"}, {"assistant", "two"}, {"user", "three"}, {"assistant", "four"}},
      {{"system", "s"}, {"user", "one"}, {"assistant", kThought}, {"user", "three"}, {"assistant", kThought}},
      {{"user", "one"}, {"assistant", "<think>\n\n</think>\n\nfour"}, {"assistant", "five"}},
      {{"user", "one"}, {"assistant", "no <think> end</think>here"}},
      {{"user", "one"}},
  };
  return kProbes;
}

// r1 stands for r1-raw here: they differ in what is deleted, and the model's own template deletes.
bool renders_the_same(const ChatTemplate& built_in, const JinjaProcess& process) {
  for (const Conversation& conversation : probes()) {
    const bool ends_open = conversation.back().role == "user";
    try {
      if (built_in.render(conversation, ends_open).text != process.render(conversation, ends_open).text) return false;
    } catch (const UserError&) {  // a template that refuses, say, two answers in a row
      return false;
    }
  }
  return true;
}

std::string python_of(const ChatOptions& options) {
  if (!options.python.empty()) return options.python;
  return fs::exists(DMS_PYTHON) ? DMS_PYTHON : "python3";
}

}  // namespace

const std::vector<std::string>& chat_template_names() {
  static const std::vector<std::string> kNames = {"chatml", "llama3", "qwen3", "r1", "r1-raw"};
  return kNames;
}

bool has_chat_template(const std::string& model_dir) { return !read_model_chat(model_dir).template_text.empty(); }

std::shared_ptr<const ChatTemplate> ChatTemplate::load(const std::string& model_dir, const ChatOptions& options) {
  const auto built_in = [&](const std::string& name, const ModelChat& model) {
    return std::make_shared<BuiltInTemplate>(*family_by_name(name), model, options);
  };
  ModelChat model = read_model_chat(model_dir);
  if (family_by_name(options.name) != nullptr) return built_in(options.name, model);
  if (options.name != "auto" && options.name != "jinja") {
    std::vector<std::string> names = chat_template_names();
    names.insert(names.end(), {"auto", "jinja"});
    std::vector<std::string> details = {"built in: chatml, llama3, qwen3, r1, r1-raw; or auto, or jinja"};
    if (const std::string hint = did_you_mean(options.name, names); !hint.empty()) details.push_back(hint);
    throw UserError("--template", "unknown template " + in_quotes(options.name), details);
  }
  if (model.template_text.empty()) {
    throw UserError(model_dir, "has no chat template, which conversations need",
                    {"expected chat_template.jinja, or chat_template in tokenizer_config.json",
                     "or name a built-in one: --template chatml, llama3, qwen3, r1 or r1-raw"});
  }
  const std::string python = python_of(options);
  if (options.thinking.has_value()) {
    if (model.template_text.find("enable_thinking") == std::string::npos) throw no_thinking_switch(model_dir);
    model.variables["enable_thinking"] = *options.thinking;
  }
  auto process = JinjaProcess::start(python, model.template_text, options.date_string, model.variables.dump());
  const ChatFamily* family = options.name == "auto" ? family_by_marks(model.template_text) : nullptr;
  if (process == nullptr) {
    if (family != nullptr) return built_in(family->name, model);
    throw UserError(
        model_dir, "its chat template needs a Python with jinja2, and '" + python + "' is none",
        {"run tools/setup.sh, or name a built-in template: --template chatml, llama3, qwen3, r1 or r1-raw"});
  }
  if (family != nullptr) {
    const std::string compared = family->name == "r1-raw" ? "r1" : family->name;
    if (renders_the_same(*built_in(compared, model), *process)) return built_in(family->name, model);
  }
  return std::make_shared<JinjaTemplate>(std::move(process), model.template_text);
}

}  // namespace dms
