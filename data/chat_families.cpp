#include "data/chat_families.h"

#include <algorithm>

#include "recipes/strict_json.h"
#include "recipes/user_error.h"

namespace dms {
namespace {

constexpr std::string_view kThinkEnd = "</think>";

class ChatText {
 public:
  void put(std::string_view text) { chat_.text += text; }
  // What the assistant wrote, with the mark that ends the turn.
  void put_answer(std::string_view text) {
    chat_.assistant.push_back({chat_.text.size(), chat_.text.size() + text.size()});
    put(text);
  }
  RenderedChat take() { return std::move(chat_); }

 private:
  RenderedChat chat_;
};

std::string without_leading(const std::string& text, std::string_view characters) {
  const size_t first = text.find_first_not_of(characters);
  return first == std::string::npos ? "" : text.substr(first);
}

std::string without_trailing(const std::string& text, std::string_view characters) {
  return text.substr(0, text.find_last_not_of(characters) + 1);
}

// Jinja's trim: Python's str.strip() over the white space that texts hold at their ends.  The rest of Unicode's white
// space takes the same path through strip().
std::string trimmed(const std::string& text) {
  static const std::vector<std::string> kWide = {"\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\xA8",
                                                 "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};
  const auto wide_at_start = [](std::string_view rest) -> size_t {
    for (const std::string& space : kWide) {
      if (rest.starts_with(space)) return space.size();
    }
    const bool en_to_hair = rest.size() >= 3 && rest.starts_with("\xE2\x80") &&
                            static_cast<unsigned char>(rest[2]) >= 0x80 && static_cast<unsigned char>(rest[2]) <= 0x8A;
    return en_to_hair ? 3 : 0;
  };
  const auto is_narrow = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r') || (c >= '\x1C' && c <= '\x1F'); };
  std::string_view rest = text;
  while (!rest.empty()) {
    const size_t num_bytes = is_narrow(rest.front()) ? 1 : wide_at_start(rest);
    if (num_bytes == 0) break;
    rest.remove_prefix(num_bytes);
  }
  while (!rest.empty()) {
    size_t num_bytes = is_narrow(rest.back()) ? 1 : 0;
    for (const size_t length : {size_t{2}, size_t{3}}) {
      if (num_bytes == 0 && rest.size() >= length && wide_at_start(rest.substr(rest.size() - length)) == length) {
        num_bytes = length;
      }
    }
    if (num_bytes == 0) break;
    rest.remove_suffix(num_bytes);
  }
  return std::string(rest);
}

[[noreturn]] void refuse_role(const ChatMessage& message, const std::string& family) {
  throw UserError(
      "",
      "a message of role " + in_quotes(message.role) + " cannot be rendered by the built-in template '" + family + "'",
      {"it knows system, user and assistant", "--template jinja runs the model's own template"});
}

void check_roles(const Conversation& conversation, const std::string& family) {
  for (const ChatMessage& message : conversation) {
    if (message.role != "system" && message.role != "user" && message.role != "assistant") refuse_role(message, family);
  }
}

void put_chatml_turn(ChatText& chat, const std::string& role, const std::string& content) {
  chat.put("<|im_start|>" + role + "\n");
  if (role == "assistant") {
    chat.put_answer(content + "<|im_end|>");
  } else {
    chat.put(content + "<|im_end|>");
  }
  chat.put("\n");
}

// SmolLM2, Qwen 2.5, Qwen 3 Instruct 2507.
RenderedChat render_chatml(const Conversation& conversation, bool add_generation_prompt, const std::string&,
                           const std::string& system, const std::string&) {
  check_roles(conversation, "chatml");
  ChatText chat;
  if (!system.empty() && (conversation.empty() || conversation.front().role != "system")) {
    put_chatml_turn(chat, "system", system);
  }
  for (const ChatMessage& message : conversation) put_chatml_turn(chat, message.role, message.content);
  if (add_generation_prompt) chat.put("<|im_start|>assistant\n");
  return chat.take();
}

// Qwen 3: reasoning is kept, in a normal form, in what follows the last question, and dropped from what precedes it.
RenderedChat render_qwen3(const Conversation& conversation, bool add_generation_prompt, const std::string&,
                          const std::string&, const std::string&) {
  check_roles(conversation, "qwen3");
  size_t last_query = conversation.empty() ? 0 : conversation.size() - 1;
  for (size_t i = conversation.size(); i-- > 0;) {
    const std::string& content = conversation[i].content;
    const bool is_tool_result = content.starts_with("<tool_response>") && content.ends_with("</tool_response>");
    if (conversation[i].role == "user" && !is_tool_result) {
      last_query = i;
      break;
    }
  }
  ChatText chat;
  for (size_t i = 0; i < conversation.size(); ++i) {
    const ChatMessage& message = conversation[i];
    if (message.role != "assistant") {
      put_chatml_turn(chat, message.role, message.content);
      continue;
    }
    std::string content = message.content, reasoning;
    if (content.find(kThinkEnd) != std::string::npos) {
      reasoning = without_trailing(content.substr(0, content.find(kThinkEnd)), "\n");
      if (const size_t begin = reasoning.rfind("<think>"); begin != std::string::npos) {
        reasoning = reasoning.substr(begin + std::string_view("<think>").size());
      }
      reasoning = without_leading(reasoning, "\n");
      content = without_leading(content.substr(content.rfind(kThinkEnd) + kThinkEnd.size()), "\n");
    }
    const bool is_last = i + 1 == conversation.size();
    if (i > last_query && (is_last || !reasoning.empty())) {
      content = "<think>\n" + without_trailing(without_leading(reasoning, "\n"), "\n") + "\n</think>\n\n" +
                without_leading(content, "\n");
    }
    put_chatml_turn(chat, "assistant", content);
  }
  if (add_generation_prompt) chat.put("<|im_start|>assistant\n");
  return chat.take();
}

// Llama 3.1 and 3.2 Instruct, without tools.
RenderedChat render_llama3(const Conversation& conversation, bool add_generation_prompt, const std::string& bos,
                           const std::string&, const std::string& date_string) {
  check_roles(conversation, "llama3");
  ChatText chat;
  const auto put_header = [&](const std::string& role) {
    chat.put("<|start_header_id|>" + role + "<|end_header_id|>\n\n");
  };
  const bool has_system = !conversation.empty() && conversation.front().role == "system";
  chat.put(bos);
  put_header("system");
  chat.put("Cutting Knowledge Date: December 2023\nToday Date: " + date_string + "\n\n" +
           (has_system ? trimmed(conversation.front().content) : "") + "<|eot_id|>");
  for (size_t i = has_system ? 1 : 0; i < conversation.size(); ++i) {
    put_header(conversation[i].role);
    const std::string turn = trimmed(conversation[i].content) + "<|eot_id|>";
    if (conversation[i].role == "assistant") {
      chat.put_answer(turn);
    } else {
      chat.put(turn);
    }
  }
  if (add_generation_prompt) put_header("assistant");
  return chat.take();
}

RenderedChat render_r1(const Conversation& conversation, bool add_generation_prompt, const std::string& bos,
                       bool keep_reasoning) {
  check_roles(conversation, keep_reasoning ? "r1-raw" : "r1");
  ChatText chat;
  chat.put(bos);
  for (auto message = conversation.rbegin(); message != conversation.rend(); ++message) {
    if (message->role != "system") continue;
    chat.put(message->content);
    break;
  }
  for (const ChatMessage& message : conversation) {
    if (message.role == "user") chat.put("<｜User｜>" + message.content);
    if (message.role != "assistant") continue;
    const size_t end = keep_reasoning ? std::string::npos : message.content.rfind(kThinkEnd);
    chat.put("<｜Assistant｜>");
    chat.put_answer((end == std::string::npos ? message.content : message.content.substr(end + kThinkEnd.size())) +
                    "<｜end▁of▁sentence｜>");
  }
  if (add_generation_prompt) chat.put("<｜Assistant｜><think>\n");
  return chat.take();
}

}  // namespace

const std::vector<ChatFamily>& chat_families() {
  static const std::vector<ChatFamily> kFamilies = {
      {"r1-raw",
       {"<｜User｜>", "<｜Assistant｜>", "</think>"},
       [](const Conversation& c, bool prompt, const std::string& bos, const std::string&, const std::string&) {
         return render_r1(c, prompt, bos, true);
       }},
      {"r1",
       {"<｜User｜>", "<｜Assistant｜>"},
       [](const Conversation& c, bool prompt, const std::string& bos, const std::string&, const std::string&) {
         return render_r1(c, prompt, bos, false);
       }},
      {"llama3", {"<|start_header_id|>", "<|eot_id|>", "Cutting Knowledge Date"}, render_llama3},
      {"qwen3", {"<|im_start|>", "<|im_end|>", "</think>"}, render_qwen3, "<think>\n\n</think>\n\n"},
      {"chatml", {"<|im_start|>", "<|im_end|>"}, render_chatml},
  };
  return kFamilies;
}

std::string default_system_of(const std::string& template_text) {
  // Inside a Jinja string the line break is written "\n" in a .jinja file, and a line break in most others.
  for (const std::string opening : {"<|im_start|>system\n", "<|im_start|>system\\n"}) {
    for (size_t at = template_text.find(opening); at != std::string::npos; at = template_text.find(opening, at + 1)) {
      const size_t begin = at + opening.size(), end = template_text.find("<|im_end|>", begin);
      if (end == std::string::npos) break;
      const std::string text = template_text.substr(begin, end - begin);
      if (!text.empty() && text.find_first_of("'\"{}") == std::string::npos) return text;
    }
  }
  return "";
}

}  // namespace dms
