#include "data/tokenizer_json.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "recipes/strict_json.h"
#include "recipes/user_error.h"

namespace dms {
namespace {

using Json = nlohmann::json;

// The splits of the reference, character for character.  Other patterns are refused: Oniguruma, which the reference
// uses, and PCRE2 differ in too many corners to trust one that was never compared.
constexpr const char* kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// DeepSeek V3's three, one after another.  Its line breaks stand for themselves, not as escapes.
constexpr const char* kDeepSeekPatterns[] = {
    R"(\p{N}{1,3})", "[一-龥\u3040-ゟ゠-ヿ]+",
    ("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
     "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+")};

bool is_known_pattern(const std::string& regex) {
  return regex == kGpt2Pattern || regex == kLlama3Pattern || regex == kQwen2Pattern ||
         std::find(std::begin(kDeepSeekPatterns), std::end(kDeepSeekPatterns), regex) != std::end(kDeepSeekPatterns);
}

class Parser {
 public:
  Parser(const Json& root, const std::string& path) : root_(root), path_(path) {}

  TokenizerDescription parse() {
    check_keys(root_, "",
               {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
                "decoder", "model"});
    if (const Json& version = value_of(root_, "version"); version != "1.0") fail("version", shown(version), "\"1.0\"");
    parse_model(member(root_, "model"));
    parse_added_tokens(value_of(root_, "added_tokens"));
    parse_normalizer(value_of(root_, "normalizer"));
    parse_pre_tokenizer(value_of(root_, "pre_tokenizer"), true);
    if (!has_byte_level_) fail("pre_tokenizer", "no ByteLevel step", "one, as the last step");
    parse_post_processor(value_of(root_, "post_processor"));
    if (const std::string decoder = type_of(value_of(root_, "decoder")); decoder != "ByteLevel") {
      fail("decoder", "'" + decoder + "'", "ByteLevel");
    }
    return std::move(result_);
  }

 private:
  [[noreturn]] void fail(const std::string& where, const std::string& found, const std::string& expected) const {
    throw UserError(path_, where + ": " + found + " is not supported", {"expected: " + expected});
  }

  void check_keys(const Json& object, const std::string& where, const std::vector<std::string>& known) const {
    if (!object.is_object()) fail(where, shown(object), "an object");
    for (const auto& [key, ignored] : object.items()) {
      if (std::find(known.begin(), known.end(), key) == known.end()) {
        std::string list;
        for (const std::string& name : known) list += (list.empty() ? "" : ", ") + name;
        fail(where.empty() ? "top level" : where, "the key " + in_quotes(key), list);
      }
    }
  }

  // A missing key reads as null.
  static const Json& value_of(const Json& object, const char* key) {
    static const Json kNull;
    return object.contains(key) ? object[key] : kNull;
  }

  const Json& member(const Json& object, const char* key) const {
    if (!object.contains(key)) throw UserError(path_, std::string("the key '") + key + "' is missing");
    return object[key];
  }

  std::string type_of(const Json& component) const {
    if (component.is_null()) return "null";
    if (!component.is_object() || !component.contains("type") || !component["type"].is_string()) {
      fail("a component", shown(component), "an object with a 'type'");
    }
    return component["type"];
  }

  bool flag(const Json& object, const std::string& where, const char* key, bool absent) const {
    const Json& value = value_of(object, key);
    if (value.is_null()) return absent;
    if (!value.is_boolean()) fail(where + "." + key, shown(value), "true or false");
    return value;
  }

  std::string text(const Json& value, const std::string& where) const {
    if (!value.is_string()) fail(where, shown(value), "a string");
    return value;
  }

  static bool is_id(const Json& value) {
    return value.is_number_integer() && value >= 0 && value < std::numeric_limits<int32_t>::max();
  }

  int32_t id(const Json& value, const std::string& where) const {
    if (!is_id(value)) fail(where, shown(value), "a token id");
    return value;
  }

  const Json& list(const Json& value, const std::string& where) const {
    if (!value.is_array()) fail(where, shown(value), "a list");
    return value;
  }

  void parse_model(const Json& model) {
    check_keys(model, "model",
               {"type", "vocab", "merges", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                "fuse_unk", "byte_fallback", "ignore_merges"});
    if (const Json& type = value_of(model, "type"); !type.is_null() && type != "BPE")
      fail("model.type", shown(type), "BPE");
    if (const Json& value = value_of(model, "dropout"); !value.is_null() && value != 0) {
      fail("model.dropout", shown(value), "null: it makes ids random");
    }
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (const Json& value = value_of(model, key); !value.is_null() && value != "") {
        fail(std::string("model.") + key, shown(value), "null");
      }
    }
    for (const char* key : {"fuse_unk", "byte_fallback"}) {
      if (flag(model, "model", key, false)) fail(std::string("model.") + key, "true", "false");
    }
    result_.ignore_merges = flag(model, "model", "ignore_merges", false);
    parse_vocab(member(model, "vocab"));
    parse_merges(list(member(model, "merges"), "model.merges"));
    if (const Json& unk = value_of(model, "unk_token"); !unk.is_null()) {
      const auto found = id_of_.find(text(unk, "model.unk_token"));
      if (found == id_of_.end()) fail("model.unk_token", shown(unk), "an entry of model.vocab");
      result_.unk_id = found->second;
    }
  }

  void parse_vocab(const Json& vocab) {
    if (!vocab.is_object() || vocab.empty()) fail("model.vocab", shown(vocab), "an object {token: id}");
    std::unordered_set<int32_t> ids;
    ids.reserve(vocab.size());
    id_of_.reserve(vocab.size());
    for (const auto& [token, value] : vocab.items()) {
      if (!is_id(value)) fail("model.vocab[" + in_quotes(token) + "]", shown(value), "a token id");
      const int32_t token_id = value;
      if (!ids.insert(token_id).second) {
        throw UserError(path_, "model.vocab gives the id " + std::to_string(token_id) + " to two tokens, one of them " +
                                   in_quotes(token));
      }
      id_of_.emplace(token, token_id);
      result_.vocab.emplace_back(token, token_id);
    }
  }

  // "a b", or ["a", "b"] in newer files.
  void parse_merges(const Json& merges) {
    for (size_t i = 0; i < merges.size(); ++i) {
      const auto where = [i] { return "model.merges[" + std::to_string(i) + "]"; };
      std::pair<std::string, std::string> merge;
      if (merges[i].is_string()) {
        const auto& line = merges[i].get_ref<const std::string&>();
        if (line.starts_with("#version")) continue;
        const size_t space = line.find(' ');
        if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) {
          fail(where(), in_quotes(line), "two tokens with one space between them");
        }
        merge = {line.substr(0, space), line.substr(space + 1)};
      } else if (merges[i].is_array() && merges[i].size() == 2 && merges[i][0].is_string() &&
                 merges[i][1].is_string()) {
        merge = {merges[i][0], merges[i][1]};
      } else {
        fail(where(), shown(merges[i]), "\"a b\" or [\"a\", \"b\"]");
      }
      for (const std::string& token : {merge.first, merge.second, merge.first + merge.second}) {
        if (!id_of_.contains(token)) {
          throw UserError(path_,
                          where() + " (" + shown(merges[i]) + "): " + in_quotes(token) + " is not in model.vocab");
        }
      }
      result_.merges.push_back(std::move(merge));
    }
  }

  // The reference gives new tokens consecutive ids after the vocabulary and only warns when the file says otherwise.
  void parse_added_tokens(const Json& tokens) {
    if (tokens.is_null()) return;
    const int32_t vocab_entries = static_cast<int32_t>(id_of_.size());
    int32_t largest_id = -1;
    std::unordered_map<std::string, int32_t> seen;
    for (size_t i = 0; i < list(tokens, "added_tokens").size(); ++i) {
      const std::string where = "added_tokens[" + std::to_string(i) + "]";
      check_keys(tokens[i], where, {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
      AddedToken token;
      token.id = id(value_of(tokens[i], "id"), where + ".id");
      token.content = text(value_of(tokens[i], "content"), where + ".content");
      token.single_word = flag(tokens[i], where, "single_word", false);
      token.lstrip = flag(tokens[i], where, "lstrip", false);
      token.rstrip = flag(tokens[i], where, "rstrip", false);
      token.special = flag(tokens[i], where, "special", false);
      token.normalized = flag(tokens[i], where, "normalized", !token.special);
      if (token.content.empty()) fail(where + ".content", "an empty string", "some text");
      const auto known = id_of_.find(token.content);
      const int32_t expected = known != id_of_.end() ? known->second : std::max(vocab_entries, largest_id + 1);
      if (!seen.emplace(token.content, token.id).second || token.id != expected) {
        throw UserError(path_,
                        where + ": " + in_quotes(token.content) + " has id " + std::to_string(token.id) +
                            (token.id == expected ? " twice" : "; the reference gives it " + std::to_string(expected)));
      }
      largest_id = std::max(largest_id, token.id);
      result_.added_tokens.push_back(std::move(token));
    }
  }

  void parse_normalizer(const Json& normalizer) {
    const std::string type = type_of(normalizer);
    if (type == "NFC") {
      result_.nfc = true;
    } else if (type == "Sequence") {
      for (const Json& step : list(value_of(normalizer, "normalizers"), "normalizer.normalizers"))
        parse_normalizer(step);
    } else if (type != "null") {
      fail("normalizer", "'" + type + "'", "null or NFC");
    }
  }

  void parse_pre_tokenizer(const Json& step, bool is_outermost) {
    const std::string type = type_of(step), where = "pre_tokenizer";
    if (type != "Sequence" && has_byte_level_)
      fail(where, "'" + type + "' after ByteLevel", "ByteLevel as the last step");
    if (type == "Sequence") {
      if (!is_outermost) fail(where, "a Sequence in a Sequence", "one Sequence");
      for (const Json& inner : list(value_of(step, "pretokenizers"), where + ".pretokenizers")) {
        parse_pre_tokenizer(inner, false);
      }
    } else if (type == "ByteLevel") {
      check_keys(step, where, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
      if (flag(step, where, "add_prefix_space", true)) fail(where + ".add_prefix_space", "true", "false");
      if (flag(step, where, "use_regex", true)) result_.split_steps.push_back({SplitStep::Kind::kRegex, kGpt2Pattern});
      has_byte_level_ = true;
    } else if (type == "Digits") {
      check_keys(step, where, {"type", "individual_digits"});
      const bool individual = flag(step, where, "individual_digits", false);
      result_.split_steps.push_back({individual ? SplitStep::Kind::kDigits : SplitStep::Kind::kDigitRuns, ""});
    } else if (type == "Split") {
      check_keys(step, where, {"type", "pattern", "behavior", "invert"});
      if (value_of(step, "behavior") != "Isolated") {
        fail(where + ".behavior", shown(value_of(step, "behavior")), "\"Isolated\"");
      }
      if (flag(step, where, "invert", false)) fail(where + ".invert", "true", "false");
      const Json& pattern = value_of(step, "pattern");
      if (!pattern.is_object() || pattern.size() != 1 || !pattern.contains("Regex")) {
        fail(where + ".pattern", shown(pattern), "{\"Regex\": ...}");
      }
      const std::string regex = text(pattern["Regex"], where + ".pattern.Regex");
      if (!is_known_pattern(regex)) {
        fail(where + ".pattern", in_quotes(regex), "the pattern of GPT-2, Llama 3, Qwen2 or DeepSeek V3");
      }
      result_.split_steps.push_back({SplitStep::Kind::kRegex, regex});
    } else {
      fail(where, "'" + type + "'", "Sequence, ByteLevel, Digits or Split");
    }
  }

  void parse_post_processor(const Json& processor) {
    const std::string type = type_of(processor), where = "post_processor";
    if (type == "null" || type == "ByteLevel") return;  // ByteLevel moves offsets only
    if (type == "Sequence") {
      for (const Json& step : list(value_of(processor, "processors"), where + ".processors"))
        parse_post_processor(step);
      return;
    }
    if (type != "TemplateProcessing") fail(where, "'" + type + "'", "null, ByteLevel or TemplateProcessing");
    if (has_template_) fail(where, "a second TemplateProcessing", "at most one");
    has_template_ = true;
    const Json& specials = value_of(processor, "special_tokens");
    bool after_text = false;
    for (const Json& part : list(value_of(processor, "single"), where + ".single")) {
      if (part.contains("Sequence") && value_of(part["Sequence"], "id") == "A" && !after_text) {
        after_text = true;
      } else if (part.contains("SpecialToken")) {
        const std::string name = text(value_of(part["SpecialToken"], "id"), where + ".single");
        if (!specials.is_object() || !specials.contains(name))
          fail(where, in_quotes(name), "an entry of special_tokens");
        for (const Json& value : list(value_of(specials[name], "ids"), where + ".special_tokens")) {
          (after_text ? result_.suffix_ids : result_.prefix_ids).push_back(id(value, where + ".special_tokens"));
        }
      } else {
        fail(where + ".single", shown(part), "SpecialToken entries around one Sequence A");
      }
    }
    if (!after_text) fail(where + ".single", "no Sequence A", "one");
  }

  const Json& root_;
  const std::string& path_;
  TokenizerDescription result_;
  std::unordered_map<std::string, int32_t> id_of_;
  bool has_byte_level_ = false, has_template_ = false;
};

}  // namespace

TokenizerDescription parse_tokenizer_json(const std::string& text, const std::string& path) {
  const Json root = parse_strict_json(text, path);
  try {
    return Parser(root, path).parse();
  } catch (const Json::exception& error) {  // an access that no check above foresaw
    throw UserError(path, std::string("is not a tokenizer: ") + error.what());
  }
}

}  // namespace dms
