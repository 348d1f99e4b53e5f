// A model's own chat template, rendered by jinja2's sandbox in a child process (data/templates/render_chat.py).
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "data/chat_template.h"

namespace dms {

class JinjaProcess {
 public:
  // `variables_json`: an object of texts that the template may use, such as bos_token.  nullptr when `python` cannot be
  // started or has no jinja2.  Throws UserError when the template is no template.
  static std::unique_ptr<JinjaProcess> start(const std::string& python, const std::string& template_text,
                                             const std::string& date_string, const std::string& variables_json);
  ~JinjaProcess();
  JinjaProcess(const JinjaProcess&) = delete;
  JinjaProcess& operator=(const JinjaProcess&) = delete;

  // Thread-safe, one at a time.  Throws UserError with what the template says.
  RenderedChat render(const Conversation& conversation, bool add_generation_prompt) const;

 private:
  struct State;
  explicit JinjaProcess(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace dms
