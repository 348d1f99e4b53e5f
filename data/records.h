// From one record of a data set, a JSON object, to what is trained on: a text or conversations.  The forms in which
// people publish training data are told apart by their keys:
//   text           {"text": "..."}, or another key by its name
//   messages       {"messages": [{"role", "content"}]}; a content is a text or a list of {"type": "text", "text"}
//   ShareGPT       {"conversations": [{"from", "value"}], "system"?}
//   Alpaca         {"instruction", "input"?, "output"}
//   OpenR1-Math    {"problem", "generations": [...], "correctness_math_verify": [...]}
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/chat_template.h"

namespace dms {

enum class RecordKind { text, messages, sharegpt, alpaca, openr1 };
const char* name_of(RecordKind kind);

// Which of several worked solutions to one problem: those whose answer was found right by math-verify, or any.
enum class Solutions { last_verified, verified, all };

struct RecordOptions {
  std::string text_field;  // the key of the text; empty: records are told by their keys, "text" being the last resort
  Solutions solutions = Solutions::last_verified;
  bool allow_tools = false;  // ShareGPT's function calls and tool results, as roles of those names
};

// One line of a JSONL file.  Throws UserError at `where`: no JSON, or nested deeper than 64.
nlohmann::json parse_record(std::string_view line, const std::string& where);

// What kind of record this is; nullopt when none.  A `text_field` always means text.
std::optional<RecordKind> kind_of(const nlohmann::json& record, const RecordOptions& options);

struct Document {
  std::string text;           // empty for a conversation
  Conversation conversation;  // empty for a text
};

// The documents of one record: one, or for OpenR1-Math one a chosen solution, possibly none.  Throws UserError at
// `where` for a record of another kind or of a wrong shape.
std::vector<Document> documents_of(const nlohmann::json& record, RecordKind kind, const RecordOptions& options,
                                   const std::string& where);

}  // namespace dms
