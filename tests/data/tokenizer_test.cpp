#include "data/tokenizer.h"

#include <gtest/gtest.h>

#include <thread>

#include "data/tokenizer_text.h"
#include "recipes/user_error.h"
#include "tests/data/tiny_tokenizer.h"
#include "tests/support/temporary_directory.h"

namespace dms {
namespace {

using Ids = std::vector<int32_t>;
using Json = nlohmann::json;

std::shared_ptr<const Tokenizer> load(const Json& json) {
  TemporaryDirectory directory;
  return Tokenizer::load(write_tokenizer(directory / "tiny", json));
}

std::string refusal_of(const Json& json) {
  try {
    load(json);
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Tokenizer, MergesTheLowestRankLeftmostFirst) {
  const auto tokenizer = load(tiny_tokenizer_json());
  EXPECT_EQ(tokenizer->encode("abc", false), (Ids{257}));
  EXPECT_EQ(tokenizer->encode("ababcb", false), (Ids{256, 257, 'b'}));
  EXPECT_EQ(tokenizer->encode("bcab", false), (Ids{259, 256}));
  // "Ġ a" ranks below "a b": the space stays alone.
  EXPECT_EQ(tokenizer->encode(" ab a", false), (Ids{' ', 256, 258}));
  EXPECT_EQ(tokenizer->encode("", true), (Ids{}));
}

TEST(Tokenizer, APairThatMergedOtherwiseIsNotMergedAgain) {
  Json json = tiny_tokenizer_json();
  json["model"]["merges"] = {"b c", "a b", "a bc"};  // "a b" is a candidate when "b c" takes the b away
  EXPECT_EQ(load(json)->encode("abc ab", false), (Ids{257, ' ', 256}));
}

TEST(Tokenizer, IgnoreMergesTakesWholeEntries) {
  Json json = tiny_tokenizer_json();
  json["model"]["merges"] = {"b c"};
  EXPECT_EQ(load(json)->encode("abc", false), (Ids{'a', 259}));
  json["model"]["ignore_merges"] = true;
  EXPECT_EQ(load(json)->encode("abc", false), (Ids{257}));
}

TEST(Tokenizer, MergesMayBePairs) {
  Json json = tiny_tokenizer_json();
  json["model"]["merges"] = Json::array(
      {Json::array({"a", "b"}), Json::array({"ab", "c"}), Json::array({"\u0120", "a"}), Json::array({"b", "c"})});
  EXPECT_EQ(load(json)->encode("ababcb bc", false), load(tiny_tokenizer_json())->encode("ababcb bc", false));
}

TEST(Tokenizer, AddedTokensMatchInTextAndDecodeAsTheirContent) {
  const auto tokenizer = load(tiny_tokenizer_json());
  const Ids ids = tokenizer->encode("<s>ab<think>c</s></s", false);
  EXPECT_EQ(ids, (Ids{260, 256, 262, 'c', 261, '<', '/', 's'}));
  EXPECT_EQ(tokenizer->decode(ids, false), "<s>ab<think>c</s></s");
  EXPECT_EQ(tokenizer->decode(ids, true), "ab<think>c</s");
}

TEST(Tokenizer, LongestAddedTokenWinsAndFlagsAreObeyed) {
  Json json = tiny_tokenizer_json();
  Json& added = json["added_tokens"];
  added.push_back(added[0]);
  added[3].update({{"id", 263}, {"content", "<s>>"}});
  added.push_back(added[0]);
  added[4].update({{"id", 264}, {"content", "[x]"}, {"lstrip", true}, {"rstrip", true}});
  added.push_back(added[0]);
  added[5].update({{"id", 265}, {"content", "[w]"}, {"single_word", true}});
  const auto tokenizer = load(json);
  EXPECT_EQ(tokenizer->encode("<s>>", false), (Ids{263}));
  EXPECT_EQ(tokenizer->encode("b \u3000[x]\n[x] \tb", false), (Ids{'b', 264, 264, 'b'}));
  EXPECT_EQ(tokenizer->encode("[w] [w]b", false), (Ids{265, ' ', '[', 'w', ']', 'b'}));
}

TEST(Tokenizer, TemplateAddsSpecialTokensOnlyWhenAsked) {
  Json json = tiny_tokenizer_json();
  json["post_processor"] = {{"type", "Sequence"}, {"processors", {{{"type", "ByteLevel"}}, bos_template("<s>", 260)}}};
  const auto tokenizer = load(json);
  EXPECT_EQ(tokenizer->encode("ab", true), (Ids{260, 256}));
  EXPECT_EQ(tokenizer->encode("ab", false), (Ids{256}));
  EXPECT_EQ(tokenizer->encode("", true), (Ids{260}));
}

TEST(Tokenizer, NormalisesToNfcWhenTheFileSaysSo) {
  Json json = tiny_tokenizer_json();
  const std::string decomposed = "e\u0301";
  EXPECT_EQ(load(json)->encode(decomposed, false), (Ids{'e', 0xCC, 0x81}));
  json["normalizer"] = {{"type", "NFC"}};
  EXPECT_EQ(load(json)->encode(decomposed, false), (Ids{0xC3, 0xA9}));
}

TEST(Tokenizer, InvalidUtf8BecomesTheReplacementCharacter) {
  const auto tokenizer = load(tiny_tokenizer_json());
  const Ids replacement = {0xEF, 0xBF, 0xBD};
  EXPECT_EQ(tokenizer->encode("\xFF", false), replacement);
  EXPECT_EQ(tokenizer->decode({'x', 0xC3}, false), "x\uFFFD");
  // Unicode 3.9, table 3-8: one replacement a maximal subpart.
  EXPECT_EQ(replace_invalid_utf8("\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64"),
            "a\uFFFD\uFFFD\uFFFDb\uFFFDc\uFFFD\uFFFDd");
  EXPECT_EQ(replace_invalid_utf8("\xC0\xAF\xED\xA0\x80\xF4\x90\x80\x80"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_TRUE(is_valid_utf8("\uD7FF\uE000\U0010FFFF\u0800\U00010000"));
}

TEST(Tokenizer, EncodingIsTheSameOnManyThreads) {
  const auto tokenizer = load(tiny_tokenizer_json()), other = load([] {
                                                        Json json = tiny_tokenizer_json();
                                                        json["model"]["merges"] = {"b c"};
                                                        return json;
                                                      }());
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 500; ++k) {  // one thread, two tokenizers: their caches must not mix
        ASSERT_EQ(tokenizer->encode("abc abc", false), (Ids{257, ' ', 257}));
        ASSERT_EQ(other->encode("abc abc", false), (Ids{'a', 259, ' ', 'a', 259}));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Tokenizer, LongRunsTakeLinearTime) {
  const auto tokenizer = load(tiny_tokenizer_json());
  EXPECT_EQ(tokenizer->encode(std::string(1'000'000, ' '), false).size(), 1'000'000u);
  EXPECT_EQ(tokenizer->encode(std::string(1'000'000, 'b'), false).size(), 1'000'000u);
  std::string pairs;
  for (int i = 0; i < 500'000; ++i) pairs += "ab";
  EXPECT_EQ(tokenizer->encode(pairs, false).size(), 500'000u);
}

TEST(Tokenizer, KnowsItsSpecialIdsAndSize) {
  const auto tokenizer = load(tiny_tokenizer_json());
  EXPECT_EQ(tokenizer->bos_id(), 260);
  EXPECT_EQ(tokenizer->eos_id(), 261);
  EXPECT_EQ(tokenizer->pad_id(), -1);
  EXPECT_EQ(tokenizer->vocab_size(), 263);
  EXPECT_EQ(tokenizer->name(), "tiny");
  EXPECT_EQ(tokenizer->sha256(), sha256_hex(tiny_tokenizer_json().dump()));
}

struct Refused {
  const char* name;
  const char* pointer;  // where the value goes
  Json value;
  const char* message;  // part of what must be said
};

// One row a construct that would silently give other ids.
const std::vector<Refused> kRefused = {
    {"version", "/version", "2.0", "version: \"2.0\" is not supported"},
    {"unknown_key", "/extra", 1, "the key 'extra'"},
    {"model_type", "/model/type", "Unigram", "model.type: \"Unigram\""},
    {"dropout", "/model/dropout", 0.1, "model.dropout: 0.1"},
    {"byte_fallback", "/model/byte_fallback", true, "model.byte_fallback"},
    {"fuse_unk", "/model/fuse_unk", true, "model.fuse_unk"},
    {"subword_prefix", "/model/continuing_subword_prefix", "##", "model.continuing_subword_prefix"},
    {"word_suffix", "/model/end_of_word_suffix", "</w>", "model.end_of_word_suffix"},
    {"unknown_unk", "/model/unk_token", "<unk>", "model.unk_token"},
    {"merge_form", "/model/merges/1", "a b c", "model.merges[1]"},
    {"merge_part", "/model/merges/1", "a zz", "'zz' is not in model.vocab"},
    {"merge_result", "/model/merges/1", "c c", "'cc' is not in model.vocab"},
    {"vocab_id", "/model/vocab/ab", -1, "model.vocab['ab']: -1"},
    {"vocab_id_twice", "/model/vocab/ab", 257, "gives the id 257 to two tokens"},
    {"vocab_list", "/model/vocab", Json::array({"a"}), "model.vocab"},
    {"normalizer", "/normalizer", Json{{"type", "NFKC"}}, "normalizer: 'NFKC'"},
    {"nested_normalizer", "/normalizer", Json{{"type", "Sequence"}, {"normalizers", {{{"type", "Lowercase"}}}}},
     "normalizer: 'Lowercase'"},
    {"pre_tokenizer", "/pre_tokenizer", Json{{"type", "Metaspace"}}, "pre_tokenizer: 'Metaspace'"},
    {"no_byte_level", "/pre_tokenizer", Json{{"type", "Digits"}}, "no ByteLevel step"},
    {"prefix_space", "/pre_tokenizer/add_prefix_space", true, "pre_tokenizer.add_prefix_space"},
    {"byte_level_first", "/pre_tokenizer",
     Json{{"type", "Sequence"},
          {"pretokenizers", {{{"type", "ByteLevel"}, {"add_prefix_space", false}}, {{"type", "Digits"}}}}},
     "'Digits' after ByteLevel"},
    {"other_regex", "/pre_tokenizer",
     Json{{"type", "Split"}, {"pattern", {{"Regex", "\\w+"}}}, {"behavior", "Isolated"}, {"invert", false}},
     "the pattern of GPT-2, Llama 3, Qwen2 or DeepSeek V3"},
    {"split_behavior", "/pre_tokenizer",
     Json{{"type", "Split"}, {"pattern", {{"Regex", "\\w+"}}}, {"behavior", "Removed"}, {"invert", false}},
     "pre_tokenizer.behavior: \"Removed\""},
    {"post_processor", "/post_processor", Json{{"type", "BertProcessing"}}, "post_processor: 'BertProcessing'"},
    {"decoder", "/decoder", Json{{"type", "WordPiece"}}, "decoder: 'WordPiece'"},
    {"added_id", "/added_tokens/0/id", 300, "has id 300; the reference gives it 260"},
    {"added_twice", "/added_tokens/1/content", "<s>", "'<s>'"},
    {"added_empty", "/added_tokens/1/content", "", "added_tokens[1].content"},
    {"added_flag", "/added_tokens/1/lstrip", "yes", "added_tokens[1].lstrip: \"yes\""},
    {"model_missing", "/model", nullptr, "model"},
};

TEST(Tokenizer, RefusesByNameWhatItCannotReproduce) {
  ASSERT_EQ(refusal_of(tiny_tokenizer_json()), "accepted");
  for (const Refused& row : kRefused) {
    Json json = tiny_tokenizer_json();
    json[Json::json_pointer(row.pointer)] = row.value;
    const std::string message = refusal_of(json);
    EXPECT_NE(message.find(row.message), std::string::npos) << row.name << ": " << message;
    EXPECT_NE(message.find("tokenizer.json"), std::string::npos) << row.name << ": " << message;
  }
}

TEST(Tokenizer, SaysWhatIsMissing) {
  TemporaryDirectory directory;
  const auto message = [](const std::string& dir) -> std::string {
    try {
      Tokenizer::load(dir);
    } catch (const UserError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message(directory / "none").find("is not a directory"), std::string::npos);
  EXPECT_NE(message(directory.path()).find("has no tokenizer.json"), std::string::npos);
  write_file(directory / "tokenizer.json", "{\"version\": \"1.0\", ");
  EXPECT_NE(message(directory.path()).find("tokenizer.json:1:"), std::string::npos);
  write_tokenizer(directory.path(), tiny_tokenizer_json(), {{"eos_token", "<end>"}});
  EXPECT_NE(message(directory.path()).find("eos_token \"<end>\" is not a token of tokenizer.json"), std::string::npos);
}

}  // namespace
}  // namespace dms
