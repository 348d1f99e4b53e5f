#include "recipes/strict_json.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <vector>

#include "recipes/user_error.h"

namespace dms {

namespace {

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxShownBytes = 120;

std::string position(std::string_view text, size_t offset, const std::string& where) {
  offset = std::min(offset, text.size());
  const std::string_view before = text.substr(0, offset);
  const size_t line = 1 + std::count(before.begin(), before.end(), '\n');
  const size_t line_start = before.rfind('\n') == std::string_view::npos ? 0 : before.rfind('\n') + 1;
  return where + ":" + std::to_string(line) + ":" + std::to_string(std::max<size_t>(1, offset - line_start));
}

// Cuts at `max_bytes`, without leaving half a UTF-8 character behind.
std::string cut(std::string text, size_t max_bytes) {
  if (text.size() <= max_bytes) return text;
  while (max_bytes > 0 && (static_cast<unsigned char>(text[max_bytes]) & 0xC0) == 0x80) --max_bytes;
  return text.substr(0, max_bytes) + "...";
}

// "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error ..." -> "syntax error ...".
std::string reason(const std::string& library_message) {
  const size_t start = library_message.find(": ");
  return cut(start == std::string::npos ? library_message : library_message.substr(start + 2), 300);
}

}  // namespace

nlohmann::json parse_strict_json(std::string_view text, const std::string& where) {
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {  // the library would take it for the end
    throw UserError(position(text, nul + 1, where), "not valid JSON: a NUL byte");
  }
  std::vector<std::unordered_set<std::string>> open_objects;  // the keys seen so far, innermost object last
  const auto check = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    if (static_cast<size_t>(depth) > kMaxDepth) {
      throw UserError(where, "JSON nested deeper than " + std::to_string(kMaxDepth) + " levels");
    }
    if (event == Event::object_start) open_objects.emplace_back();
    if (event == Event::object_end) open_objects.pop_back();
    if (event == Event::key && !open_objects.back().insert(parsed.get<std::string>()).second) {
      throw UserError(where,
                      "the key " + in_quotes(parsed.get_ref<const std::string&>()) + " appears twice in one object",
                      {"readers disagree about which one counts: remove one"});
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), check);
  } catch (const nlohmann::json::parse_error& error) {
    throw UserError(position(text, error.byte, where), "not valid JSON: " + reason(error.what()));
  } catch (const nlohmann::json::exception& error) {
    throw UserError(where, "not valid JSON: " + reason(error.what()));
  }
}

nlohmann::json read_json_object(const std::string& path, int64_t max_bytes) {
  std::error_code status_error;
  if (!std::filesystem::is_regular_file(path, status_error)) {
    throw UserError(path, std::filesystem::exists(path, status_error) ? "not a regular file" : "no such file");
  }
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const int64_t num_bytes = file ? static_cast<int64_t>(file.tellg()) : -1;
  if (num_bytes < 0) throw UserError(path, std::string("cannot be read: ") + std::strerror(errno));
  if (num_bytes > max_bytes) {
    throw UserError(path, "is " + std::to_string(num_bytes) + " bytes long",
                    {"expected a JSON file of at most " + std::to_string(max_bytes) + " bytes"});
  }
  std::string text(static_cast<size_t>(num_bytes), '\0');
  file.seekg(0);
  if (!file.read(text.data(), num_bytes)) throw UserError(path, "cannot be read to its end");
  nlohmann::json value = parse_strict_json(text, path);
  if (!value.is_object()) throw UserError(path, "holds " + shown(value), {"expected a JSON object {...}"});
  return value;
}

std::string in_quotes(std::string_view text) {
  std::string printable = "'";
  for (const char c : cut(std::string(text.substr(0, kMaxShownBytes + 1)), kMaxShownBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7F) {
      printable += c;
    } else {
      constexpr char kDigits[] = "0123456789abcdef";
      printable += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return printable + "'";
}

std::string shown(const nlohmann::json& value) {
  return cut(value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), kMaxShownBytes);
}

}  // namespace dms
