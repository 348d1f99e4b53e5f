#include "data/tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "data/sha256.h"
#include "data/staged_file.h"
#include "data/tokenizer_added.h"
#include "data/tokenizer_bpe.h"
#include "data/tokenizer_json.h"
#include "data/tokenizer_split.h"
#include "data/tokenizer_text.h"
#include "recipes/strict_json.h"
#include "recipes/user_error.h"

namespace dms {
namespace {

std::vector<AddedToken> added_tokens(const TokenizerDescription& description, bool normalized) {
  std::vector<AddedToken> tokens;
  for (AddedToken token : description.added_tokens) {
    if (token.normalized != normalized) continue;
    if (normalized && description.nfc) token.content = nfc(token.content);
    tokens.push_back(std::move(token));
  }
  return tokens;
}

class JsonTokenizer : public Tokenizer {
 public:
  JsonTokenizer(const std::string& dir, const std::string& json_path, const std::string& json_text)
      : JsonTokenizer(parse_tokenizer_json(json_text, json_path)) {
    sha256_ = sha256_hex(json_text);
    name_ = std::filesystem::weakly_canonical(dir).filename().string();
  }

  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const override {
    std::string replaced;
    if (!is_valid_utf8(text)) text = replaced = replace_invalid_utf8(text);
    std::vector<int32_t> ids;
    if (add_special_tokens) ids = description_.prefix_ids;
    for (const TextPart& part : raw_finder_.split(text)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else if (description_.nfc) {
        encode_normalized(nfc(part.text), ids);
      } else {
        encode_normalized(part.text, ids);
      }
    }
    if (add_special_tokens) ids.insert(ids.end(), description_.suffix_ids.begin(), description_.suffix_ids.end());
    return ids;
  }

  Encoding encode_with_ends(std::string_view text) const override {
    Encoding encoding;
    size_t part_begin = 0;
    for (const TextPart& part : raw_finder_.split(text)) {
      const size_t part_end = part_begin + part.text.size();
      if (part.id >= 0) {
        encoding.ids.push_back(part.id);
        encoding.ends.push_back(part_end);
      } else if (description_.nfc) {
        std::vector<size_t> raw_ends;
        const std::string normalized = nfc(part.text, raw_ends);
        encode_normalized(normalized, encoding, [&](size_t end) { return part_begin + raw_ends[end]; });
      } else {
        encode_normalized(part.text, encoding, [&](size_t end) { return part_begin + end; });
      }
      part_begin = part_end;
    }
    return encoding;
  }

  std::string decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const override {
    std::string bytes;
    for (const int32_t id : ids) {
      const auto found = token_bytes_.find(id);
      if (found == token_bytes_.end()) continue;  // rows of the head beyond the tokenizer's tokens
      if (!(skip_special_tokens && found->second.special)) bytes += found->second.bytes;
    }
    return replace_invalid_utf8(bytes);
  }

  int64_t vocab_size() const override { return vocab_size_; }
  const std::string& sha256() const override { return sha256_; }
  const std::string& name() const override { return name_; }
  int32_t bos_id() const override { return bos_id_; }
  int32_t eos_id() const override { return eos_id_; }
  int32_t pad_id() const override { return pad_id_; }

  void read_config(const std::string& path) {
    const nlohmann::json config = read_json_object(path);
    bos_id_ = named_token(config, "bos_token", path);
    eos_id_ = named_token(config, "eos_token", path);
    pad_id_ = named_token(config, "pad_token", path);
  }

 private:
  struct TokenBytes {
    std::string bytes;
    bool special = false;
  };

  explicit JsonTokenizer(TokenizerDescription description)
      : description_(std::move(description)),
        raw_finder_(added_tokens(description_, false)),
        normalized_finder_(added_tokens(description_, true)),
        splitter_(description_.split_steps),
        encoder_(description_) {
    for (const auto& [token, id] : description_.vocab) {
      id_of_.emplace(token, id);
      token_bytes_[id] = {bytes_of_token(token).value_or(token), false};
      vocab_size_ = std::max<int64_t>(vocab_size_, id + 1);
    }
    for (const AddedToken& token : description_.added_tokens) {
      id_of_.emplace(token.content, token.id);
      token_bytes_[token.id] = {token.content, token.special};
      vocab_size_ = std::max<int64_t>(vocab_size_, token.id + 1);
    }
    description_.vocab.clear();  // id_of_ and the encoder hold what is needed of them
    description_.merges.clear();
  }

  void encode_normalized(std::string_view text, std::vector<int32_t>& ids) const {
    for (const TextPart& part : normalized_finder_.split(text)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      for (const std::string_view piece : splitter_.split(part.text)) encoder_.encode(piece, ids);
    }
  }

  // `place` turns an end in the normalised text into one in the text that was given.
  template <typename Place>
  void encode_normalized(std::string_view text, Encoding& encoding, const Place& place) const {
    for (const TextPart& part : normalized_finder_.split(text)) {
      size_t begin = static_cast<size_t>(part.text.data() - text.data());
      if (part.id >= 0) {
        encoding.ids.push_back(part.id);
        encoding.ends.push_back(place(begin + part.text.size()));
        continue;
      }
      for (const std::string_view piece : splitter_.split(part.text)) {
        const size_t first = encoding.ids.size();
        encoder_.encode(piece, encoding.ids);
        size_t end = begin;
        begin += piece.size();
        for (size_t i = first; i < encoding.ids.size(); ++i) {
          end = std::min(begin, end + token_bytes_.at(encoding.ids[i]).bytes.size());
          // A byte that the vocabulary cannot name leaves no token: the piece's last one covers it.
          encoding.ends.push_back(place(i + 1 == encoding.ids.size() ? begin : end));
        }
      }
    }
  }

  // Values are "<s>", {"content": "<s>", ...} or null.
  int32_t named_token(const nlohmann::json& config, const char* key, const std::string& path) const {
    if (!config.contains(key) || config[key].is_null()) return -1;
    const nlohmann::json& value = config[key];
    const nlohmann::json content = value.is_object() && value.contains("content") ? value["content"] : value;
    if (!content.is_string()) throw UserError(path, std::string(key) + " is " + shown(value) + "; a token is expected");
    const auto found = id_of_.find(content.get<std::string>());
    if (found == id_of_.end()) {
      throw UserError(path, std::string(key) + " " + shown(content) + " is not a token of tokenizer.json");
    }
    return found->second;
  }

  TokenizerDescription description_;
  AddedTokenFinder raw_finder_, normalized_finder_;
  PieceSplitter splitter_;
  BytePairEncoder encoder_;
  std::unordered_map<std::string, int32_t> id_of_;
  std::unordered_map<int32_t, TokenBytes> token_bytes_;
  int64_t vocab_size_ = 0;
  int32_t bos_id_ = -1, eos_id_ = -1, pad_id_ = -1;
  std::string sha256_, name_;
};

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::load(const std::string& dir) {
  if (!std::filesystem::is_directory(dir)) {
    throw UserError(dir, "is not a directory", {"a directory with tokenizer.json is expected, such as the model's"});
  }
  const std::string json_path = dir + "/tokenizer.json", config_path = dir + "/tokenizer_config.json";
  if (!std::filesystem::exists(json_path)) {
    throw UserError(dir, "has no tokenizer.json",
                    {"a fast tokenizer is needed; transformers writes one with AutoTokenizer(...).save_pretrained()"});
  }
  const auto tokenizer = std::make_shared<JsonTokenizer>(dir, json_path, read_file(json_path));
  if (std::filesystem::exists(config_path)) tokenizer->read_config(config_path);
  return tokenizer;
}

}  // namespace dms
