// JSON from files that somebody else wrote: parsed whole, or refused with the file, line and column.  Stricter than
// the library it wraps: a key given twice in one object, nesting deeper than 64 and trailing text are errors, because
// two readers of such a file would disagree about what it says.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <string>
#include <string_view>

namespace dms {

// `where` names the file in messages.  Throws UserError.
nlohmann::json parse_strict_json(std::string_view text, const std::string& where);

// The same from a file, which must hold an object and be no larger than `max_bytes`.  Throws UserError.
nlohmann::json read_json_object(const std::string& path, int64_t max_bytes = int64_t{64} << 20);

// Untrusted text for a message: quoted, control characters escaped, cut when long.
std::string in_quotes(std::string_view text);

// A JSON value for a message: its text, cut when long.
std::string shown(const nlohmann::json& value);

}  // namespace dms
