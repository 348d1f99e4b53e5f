// From a conversation to the text that a model sees, and which of that text the assistant wrote.  The families of the
// target models are built in, so that they need no Python; any other template runs in jinja2's sandbox in a child
// process.  What is rendered equals transformers' apply_chat_template(conversation, tokenize=False), but for the two
// things that a data set must not depend on: the day it is made, and (r1-raw) R1's habit of deleting reasoning.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace dms {

struct ChatMessage {
  std::string role, content;
};
using Conversation = std::vector<ChatMessage>;

struct RenderedChat {
  struct Span {
    size_t begin = 0, end = 0;  // bytes of text
  };
  std::string text;
  std::vector<Span> assistant;  // what the assistant wrote, each with the mark that ends its turn; in order
  bool knows_assistant = true;  // false: the template rewrites earlier turns, so `assistant` could not be told
};

struct ChatOptions {
  std::string name = "auto";                // auto, jinja or one of chat_template_names()
  std::string date_string = "26 Jul 2024";  // what templates that print the day print (Llama 3's own fallback)
  std::string python;                       // for jinja; empty: the one this program was built with, else python3
  std::optional<bool> thinking;             // whether answers reason first; unset: as the template has it by itself
};

// Whether a model directory has a template of its own.  Throws UserError on a malformed one.
bool has_chat_template(const std::string& model_dir);

// The built-in ones: chatml, llama3, qwen3, r1, r1-raw.
const std::vector<std::string>& chat_template_names();

class ChatTemplate {
 public:
  // `auto`: the model's own template (chat_template.jinja, else tokenizer_config.json).  A built-in takes its place
  // when it renders a set of probe conversations to the same text; for R1 that is r1-raw, which keeps the reasoning
  // that the model's own template deletes from training data.  Without a Python that has jinja2 a template with a
  // family's marks is taken for that family's.  Throws UserError, also when `thinking` is set for
  // a template that has no such switch.
  static std::shared_ptr<const ChatTemplate> load(const std::string& model_dir, const ChatOptions& options);
  virtual ~ChatTemplate() = default;

  // Thread-safe.  Throws UserError without a place for what the template refuses.
  virtual RenderedChat render(const Conversation& conversation, bool add_generation_prompt) const = 0;

  virtual const std::string& name() const = 0;    // of the built-in, or "jinja"
  virtual const std::string& sha256() const = 0;  // of the model's own template; "" when it has none
};

}  // namespace dms
