// A tokenizer.json small enough to read: the 256 bytes (id = byte value), four merges, three added tokens.
#pragma once

#include <nlohmann/json.hpp>

#include <filesystem>
#include <string>

#include "data/staged_file.h"

namespace dms {

inline std::string utf8_below_0x800(int32_t code_point) {
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

inline nlohmann::json tiny_tokenizer_json() {
  nlohmann::json vocab;
  int32_t next = 0x100;
  for (int32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    vocab[utf8_below_0x800(printable ? byte : next++)] = byte;
  }
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  vocab["\u0120a"] = 258;  // " a"
  vocab["bc"] = 259;
  const auto added = [](int32_t id, const std::string& content, bool special) {
    return nlohmann::json{{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
                          {"rstrip", false}, {"normalized", false}, {"special", special}};
  };
  return {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", {added(260, "<s>", true), added(261, "</s>", true), added(262, "<think>", false)}},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model",
       {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"a b", "ab c", "\u0120 a", "b c"}}, {"ignore_merges", false}}}};
}

inline nlohmann::json bos_template(const std::string& token, int32_t id) {
  return {
      {"type", "TemplateProcessing"},
      {"single", {{{"SpecialToken", {{"id", token}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
      {"pair", nlohmann::json::array()},
      {"special_tokens", {{token, {{"id", token}, {"ids", {id}}, {"tokens", {token}}}}}}};
}

// Writes DIR/tokenizer.json and DIR/tokenizer_config.json; returns DIR.
inline std::string write_tokenizer(const std::string& dir, const nlohmann::json& tokenizer,
                                   const nlohmann::json& config = {{"bos_token", "<s>"},
                                                                   {"eos_token", {{"content", "</s>"}}},
                                                                   {"pad_token", nullptr}}) {
  std::filesystem::create_directories(dir);
  write_file(dir + "/tokenizer.json", tokenizer.dump());
  write_file(dir + "/tokenizer_config.json", config.dump());
  return dir;
}

}  // namespace dms
