// The chat templates of the target families, written out.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "data/chat_template.h"

namespace dms {

struct ChatFamily {
  std::string name;
  std::vector<std::string> marks;  // texts that this family's templates contain, the more telling families first
  // `bos`: the text of the beginning-of-sequence token; `system`: the turn that is put first when a conversation has
  // no system message, "" for none.
  std::function<RenderedChat(const Conversation&, bool add_generation_prompt, const std::string& bos,
                             const std::string& system, const std::string& date_string)>
      render;
  // What a template that can be told not to think puts at the beginning of an answer then; "": it cannot be told.
  std::string no_thinking = "";
};
const std::vector<ChatFamily>& chat_families();

// The default system turn that a ChatML template spells out, or "".
std::string default_system_of(const std::string& template_text);

}  // namespace dms
