#include "data/records.h"

#include <array>
#include <nlohmann/json.hpp>

#include "recipes/strict_json.h"
#include "recipes/user_error.h"

namespace dms {
namespace {

using Json = nlohmann::json;

constexpr const char* kForms =
    "expected {\"text\"}, {\"messages\"}, {\"conversations\"}, {\"instruction\", \"output\"} or {\"problem\", "
    "\"generations\"}";

[[noreturn]] void fail(const std::string& where, const std::string& what, const std::string& expected) {
  throw UserError(where, what, {"expected " + expected});
}

std::string text_at(const Json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end()) fail(where, std::string("has no '") + key + "'", "a text there");
  if (!found->is_string()) fail(where, std::string("'") + key + "' is " + shown(*found), "a text");
  return *found;
}

const Json& list_at(const Json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end()) fail(where, std::string("has no '") + key + "'", "a list there");
  if (!found->is_array()) fail(where, std::string("'") + key + "' is " + shown(*found), "a list");
  return *found;
}

// A text, or a list of parts of which every one is a text.
std::string content_of(const Json& message, const std::string& where) {
  const auto content = message.find("content");
  if (content == message.end() || !content->is_array()) return text_at(message, "content", where);
  std::string text;
  for (const Json& part : *content) {
    if (!part.is_object() || !part.contains("type") || part["type"] != "text") {
      fail(where, "a part of 'content' is " + shown(part), "{\"type\": \"text\", \"text\": ...}");
    }
    text += text_at(part, "text", where);
  }
  return text;
}

Conversation messages_of(const Json& record, const std::string& where) {
  Conversation conversation;
  for (const Json& message : list_at(record, "messages", where)) {
    if (!message.is_object()) fail(where, "a message is " + shown(message), "{\"role\", \"content\"}");
    conversation.push_back({text_at(message, "role", where), content_of(message, where)});
  }
  return conversation;
}

Conversation sharegpt_of(const Json& record, const RecordOptions& options, const std::string& where) {
  static constexpr std::array<std::array<const char*, 2>, 7> kRoles = {{{"human", "user"},
                                                                        {"user", "user"},
                                                                        {"gpt", "assistant"},
                                                                        {"assistant", "assistant"},
                                                                        {"chatgpt", "assistant"},
                                                                        {"model", "assistant"},
                                                                        {"system", "system"}}};
  Conversation conversation;
  if (const auto system = record.find("system"); system != record.end() && !system->is_null()) {
    const std::string text = text_at(record, "system", where);
    if (!text.empty()) conversation.push_back({"system", text});
  }
  for (const Json& message : list_at(record, "conversations", where)) {
    if (!message.is_object()) fail(where, "an entry of 'conversations' is " + shown(message), "{\"from\", \"value\"}");
    const std::string from = text_at(message, "from", where);
    std::string role;
    for (const auto& [theirs, ours] : kRoles) {
      if (from == theirs) role = ours;
    }
    if (role.empty() && (from == "function_call" || from == "observation" || from == "tool")) {
      if (!options.allow_tools) {
        throw UserError(
            where, "a turn is from " + in_quotes(from),
            {"conversations with tools are left to a template of your own: --allow-tools --template jinja"});
      }
      role = from == "function_call" ? "assistant" : "tool";
    }
    if (role.empty()) fail(where, "a turn is from " + in_quotes(from), "human, gpt or system");
    conversation.push_back({role, text_at(message, "value", where)});
  }
  return conversation;
}

Conversation alpaca_of(const Json& record, const std::string& where) {
  std::string question = text_at(record, "instruction", where);
  if (const auto input = record.find("input"); input != record.end() && !input->is_null()) {
    const std::string text = text_at(record, "input", where);
    if (!text.empty()) question += "\n\n" + text;
  }
  return {{"user", question}, {"assistant", text_at(record, "output", where)}};
}

std::vector<Document> openr1_of(const Json& record, const RecordOptions& options, const std::string& where) {
  const std::string problem = text_at(record, "problem", where);
  const Json& generations = list_at(record, "generations", where);
  std::vector<bool> verified(generations.size(), false);
  if (options.solutions != Solutions::all) {
    const auto verdicts = record.find("correctness_math_verify");
    if (verdicts != record.end() && !verdicts->is_null()) {
      if (!verdicts->is_array() || verdicts->size() != generations.size()) {
        fail(where, "'correctness_math_verify' is " + shown(*verdicts), "one true or false a generation");
      }
      for (size_t i = 0; i < verified.size(); ++i) verified[i] = (*verdicts)[i] == true;
    }
  }
  std::vector<Document> documents;
  for (size_t i = 0; i < generations.size(); ++i) {
    if (options.solutions != Solutions::all && !verified[i]) continue;
    if (!generations[i].is_string()) fail(where, "a generation is " + shown(generations[i]), "a text");
    if (options.solutions == Solutions::last_verified) documents.clear();
    documents.push_back({"", {{"user", problem}, {"assistant", generations[i].get<std::string>()}}});
  }
  return documents;
}

}  // namespace

const char* name_of(RecordKind kind) {
  switch (kind) {
    case RecordKind::text:
      return "text";
    case RecordKind::messages:
      return "messages";
    case RecordKind::sharegpt:
      return "ShareGPT conversations";
    case RecordKind::alpaca:
      return "Alpaca instructions";
    case RecordKind::openr1:
      return "OpenR1-Math problems";
  }
  return "";
}

Json parse_record(std::string_view line, const std::string& where) {
  // The library parses any depth, but walks through what it parsed by recursion.
  constexpr int kMaxDepth = 64;
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < line.size(); ++i) {
    if (in_string) {
      if (line[i] == '\\') {
        ++i;
      } else if (line[i] == '"') {
        in_string = false;
      }
      continue;
    }
    if (line[i] == '"') in_string = true;
    if (line[i] == '[' || line[i] == '{') ++depth;
    if (line[i] == ']' || line[i] == '}') --depth;
    if (depth > kMaxDepth) throw UserError(where, "is nested deeper than 64 levels");
  }
  try {
    return Json::parse(line);
  } catch (const Json::exception& error) {
    const std::string message = error.what();  // "[json.exception...] parse error at line 1, column 5: reason"
    const size_t reason = message.find("column ");
    throw UserError(where, "is not valid JSON: " + (reason == std::string::npos ? message : message.substr(reason)),
                    {"a .jsonl file holds one object a line"});
  }
}

std::optional<RecordKind> kind_of(const Json& record, const RecordOptions& options) {
  if (!record.is_object()) return std::nullopt;
  if (!options.text_field.empty()) {
    return record.contains(options.text_field) ? std::optional(RecordKind::text) : std::nullopt;
  }
  // A record of OpenR1-Math has messages too: the problem with one of its generations.
  if (record.contains("problem") && record.contains("generations")) return RecordKind::openr1;
  if (record.contains("messages")) return RecordKind::messages;
  if (record.contains("conversations")) return RecordKind::sharegpt;
  if (record.contains("instruction") && record.contains("output")) return RecordKind::alpaca;
  if (record.contains("text")) return RecordKind::text;
  return std::nullopt;
}

std::vector<Document> documents_of(const Json& record, RecordKind kind, const RecordOptions& options,
                                   const std::string& where) {
  if (!record.is_object())
    throw UserError(where, std::string("is a JSON ") + record.type_name() + ", not an object", {kForms});
  const std::optional<RecordKind> found = kind_of(record, options);
  if (!found) {
    std::string keys;
    for (const auto& [key, ignored] : record.items()) keys += (keys.empty() ? "" : ", ") + in_quotes(key.substr(0, 40));
    const std::string missing =
        options.text_field.empty() ? "has none of the known forms" : "has no key " + in_quotes(options.text_field);
    throw UserError(where, missing, {"its keys: " + (keys.empty() ? "none" : keys.substr(0, 200)), kForms});
  }
  if (*found != kind) {
    throw UserError(where, std::string("is a record of the form '") + name_of(*found) + "'",
                    {std::string("the file's first record is of the form '") + name_of(kind) + "': split the file"});
  }
  Conversation conversation;
  switch (kind) {
    case RecordKind::text:
      return {{text_at(record, options.text_field.empty() ? "text" : options.text_field.c_str(), where), {}}};
    case RecordKind::openr1:
      return openr1_of(record, options, where);
    case RecordKind::messages:
      conversation = messages_of(record, where);
      break;
    case RecordKind::sharegpt:
      conversation = sharegpt_of(record, options, where);
      break;
    case RecordKind::alpaca:
      conversation = alpaca_of(record, where);
      break;
  }
  if (conversation.empty()) fail(where, "holds no message", "at least one");
  return {{"", std::move(conversation)}};
}

}  // namespace dms
