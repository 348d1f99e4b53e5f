// `dms inspect`: what a file or directory is, and what it says about itself, checked as far as its own contents allow.
//
// A description is one JSON object, with "kind" and "path" first; what is printed is a rendering of it, so that both
// outputs say the same.  Each kind is described by one inspect_<kind>.cpp; the list of kinds is in inspect.cpp.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>

namespace dms {

// Throws UserError when `path` is nothing that this program knows, or is broken.
nlohmann::ordered_json inspect(const std::string& path);

// One line a member: names with spaces for underscores, sizes ("..._bytes") in units, counts with separators, nested
// objects indented.
std::string description_text(const nlohmann::ordered_json& description);

// The kinds.  Each adds its members to `description`.
void describe_model(const std::string& dir, nlohmann::ordered_json& description);
void describe_hf_export(const std::string& dir, nlohmann::ordered_json& description);
void describe_adapters(const std::string& dir, nlohmann::ordered_json& description);
void describe_checkpoint(const std::string& dir, nlohmann::ordered_json& description);
void describe_run(const std::string& dir, nlohmann::ordered_json& description);
void describe_token_file(const std::string& path, nlohmann::ordered_json& description);

}  // namespace dms
