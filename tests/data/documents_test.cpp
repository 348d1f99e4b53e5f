#include "data/documents.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "data/staged_file.h"
#include "recipes/user_error.h"
#include "tests/support/temporary_directory.h"

namespace dms {
namespace {
namespace fs = std::filesystem;

// A text, or a conversation as "role: content" lines.
struct Found {
  std::string text;
  uint64_t line;
  bool operator==(const Found&) const = default;
};
void PrintTo(const Found& found, std::ostream* out) { *out << found.line << ": " << found.text; }

const std::function<void(uint64_t)> kSilent = [](uint64_t) {};

std::vector<Found> found_in(const std::string& path, uint64_t slice_bytes = 1 << 20,
                            const RecordOptions& options = {}) {
  std::vector<TextSource> sources = find_sources({path});
  std::vector<Found> found;
  for (size_t i = 0; i < sources.size(); ++i) {
    for (const TextSlice& slice : scan(sources[i], static_cast<uint32_t>(i), slice_bytes, options, kSilent)) {
      for_each_record(
          sources[i], slice, options,
          [&](const std::vector<Document>& documents, uint64_t line) {
            for (const Document& document : documents) {
              std::string text = document.text;
              for (const ChatMessage& message : document.conversation)
                text += message.role + ": " + message.content + "\n";
              found.push_back({text, line});
            }
          },
          [](const UserError& error) { throw error; });
    }
  }
  return found;
}

// As gzip(1) would, from its parts one after another.
void write_gzip(const std::string& path, const std::vector<std::string>& members) {
  std::string command = "{ ";
  for (size_t i = 0; i < members.size(); ++i) {
    const std::string part = path + ".part" + std::to_string(i);
    std::ofstream(part, std::ios::binary) << members[i];
    command += "gzip -c '" + part + "'; rm '" + part + "'; ";
  }
  ASSERT_EQ(std::system((command + "} > '" + path + "'").c_str()), 0);
}

template <typename Action>
std::string message_of(Action action) {
  try {
    action();
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Documents, ATextFileIsOneDocument) {
  TemporaryDirectory directory;
  write_file(directory / "a.txt", "\xEF\xBB\xBFline 1\nline 2\n");
  EXPECT_EQ(found_in(directory / "a.txt"), (std::vector<Found>{{"line 1\nline 2\n", 1}}));
}

TEST(Documents, JsonlLinesAreDocumentsWithTheirLineNumbers) {
  TemporaryDirectory directory;
  write_file(directory / "a.jsonl",
             "\xEF\xBB\xBF{\"text\": \"one\"}\r\n\n  \t\n{\"id\": 7, \"text\": \"t\\u0077o\\n\"}\n{\"text\":\"\"}");
  EXPECT_EQ(found_in(directory / "a.jsonl"), (std::vector<Found>{{"one", 1}, {"two\n", 4}, {"", 5}}));
}

TEST(Documents, SlicesCutBetweenLinesAndLoseNothing) {
  TemporaryDirectory directory;
  std::string lines;
  std::vector<Found> expected;
  for (uint64_t i = 1; i <= 500; ++i) {
    expected.push_back({std::string(i % 37, 'x') + std::to_string(i), i});
    lines += "{\"text\": \"" + expected.back().text + "\"}" + (i < 500 ? "\n" : "");
  }
  write_file(directory / "a.jsonl", lines);
  for (const uint64_t slice_bytes : {1, 20, 333, 5000, 1'000'000}) {
    EXPECT_EQ(found_in(directory / "a.jsonl", slice_bytes), expected) << slice_bytes;
  }
  std::vector<TextSource> sources = find_sources({directory / "a.jsonl"});
  EXPECT_GT(scan(sources[0], 0, 333, {}, kSilent).size(), 20u);
  EXPECT_EQ(sources[0].sha256, sha256_hex(lines));
  EXPECT_EQ(sources[0].size_bytes, lines.size());
}

TEST(Documents, DirectoriesAreSearchedInSortedOrderWithoutHiddenFiles) {
  TemporaryDirectory directory;
  fs::create_directories(directory / "in/b/.git");
  for (const char* name :
       {"in/c.txt", "in/a.txt", "in/b/z.jsonl", "in/b/y.md", "in/.hidden", "in/b/.git/config", "last"}) {
    write_file(directory / name, "{\"text\": \"x\"}");
  }
  std::vector<std::string> names;
  for (const TextSource& source : find_sources({directory / "last", directory / "in"})) {
    names.push_back(source.path.substr(directory.path().size() + 1));
  }
  EXPECT_EQ(names, (std::vector<std::string>{"last", "in/a.txt", "in/b/y.md", "in/b/z.jsonl", "in/c.txt"}));
}

TEST(Documents, WhatIsNoTextIsRefused) {
  TemporaryDirectory directory;
  const auto message = [&](const std::string& bytes) {
    write_file(directory / "file", bytes);
    return message_of([&] { find_sources({directory / "file"}); });
  };
  EXPECT_NE(message("BZh91AY").find("bunzip2"), std::string::npos);
  EXPECT_NE(message("\x28\xb5\x2f\xfd").find("zstd -d"), std::string::npos);
  EXPECT_NE(message("\x89HDF\r\n\x1a\n").find("HDF5"), std::string::npos);
  EXPECT_NE(message(std::string("ab\0c", 4)).find("byte 2 is zero"), std::string::npos);
  EXPECT_EQ(message("text"), "accepted");
  EXPECT_NE(message_of([&] { find_sources({directory / "none"}); }).find("does not exist"), std::string::npos);
  EXPECT_NE(message_of([&] {
              find_sources({directory / "file", directory.path()});
            }).find("named twice"),
            std::string::npos);
  fs::create_directory(directory / "empty");
  EXPECT_NE(message_of([&] { find_sources({directory / "empty"}); }).find("holds no files"), std::string::npos);
}

TEST(Documents, BadLinesAreNamed) {
  TemporaryDirectory directory;
  const auto message = [&](const std::string& line) {
    write_file(directory / "a.jsonl", "{\"text\": \"good\"}\n\n" + line + "\n");
    return message_of([&] { found_in(directory / "a.jsonl"); });
  };
  for (const auto& [line, expected] : std::vector<std::pair<std::string, std::string>>{
           {"{\"text\": \"x\"", "is not valid JSON"},
           {"{\"text\": \"\xFF\"}", "is not valid JSON"},
           {"[1]", "is a JSON array, not an object"},
           {"{\"text\": " + std::string(200'000, '[') + std::string(200'000, ']') + "}",
            "is nested deeper than 64 levels"},
           {"{\"text\": \"" + std::string(100, '[') + "\\\"[\", \"messages\": 7}", "the form 'messages'"},
           {"{\"text\": 7}", "'text' is 7"},
           {"{\"body\": \"x\", \"id\": 1}", "its keys: 'body', 'id'"},
           {"{\"messages\": []}", "the form 'messages'\n  the file's first record is of the form 'text'"}}) {
    const std::string found = message(line);
    EXPECT_NE(found.find("a.jsonl:3: "), std::string::npos) << found;
    EXPECT_NE(found.find(expected), std::string::npos) << found;
  }
}

TEST(Documents, AFileThatChangesMeanwhileIsRefused) {
  TemporaryDirectory directory;
  write_file(directory / "a.txt", "before");
  std::vector<TextSource> sources = find_sources({directory / "a.txt"});
  const std::vector<TextSlice> slices = scan(sources[0], 0, 100, {}, kSilent);
  write_file(directory / "a.txt", "after!");
  EXPECT_NE(message_of([&] {
              for_each_record(
                  sources[0], slices[0], {}, [](const std::vector<Document>&, uint64_t) {}, [](const UserError&) {});
            }).find("changed while it was read"),
            std::string::npos);
}

TEST(Documents, GzipIsUnpackedMemberAfterMember) {
  TemporaryDirectory directory;
  write_gzip(directory / "a.jsonl.gz", {"{\"text\": \"one\"}\n{\"te", "xt\": \"two\"}\n", "\n{\"text\": \"three\"}"});
  write_gzip(directory / "a.txt.gz", {"\xEF\xBB\xBFhello\n", "there"});
  EXPECT_EQ(found_in(directory / "a.jsonl.gz", 1), (std::vector<Found>{{"one", 1}, {"two", 2}, {"three", 4}}));
  EXPECT_EQ(found_in(directory / "a.txt.gz"), (std::vector<Found>{{"hello\nthere", 1}}));
  const std::string whole = read_file(directory / "a.txt.gz");
  for (const size_t size : {size_t{2}, size_t{12}, whole.size() - 30, whole.size() - 1}) {
    write_file(directory / "cut.txt.gz", whole.substr(0, size));
    EXPECT_NE(message_of([&] { found_in(directory / "cut.txt.gz"); }).find("in the middle of its compressed data"),
              std::string::npos)
        << size;
  }
  std::string flipped = whole;
  flipped[flipped.size() - 6] ^= 1;  // a byte of the checksum
  write_file(directory / "bad.txt.gz", flipped);
  EXPECT_NE(message_of([&] { found_in(directory / "bad.txt.gz"); }).find("is damaged"), std::string::npos);
  write_gzip(directory / "binary.gz", {std::string("ab\0c", 4)});
  EXPECT_NE(message_of([&] { found_in(directory / "binary.gz"); }).find("byte 2 is zero"), std::string::npos);
}

TEST(Documents, RecordsOfEveryFormAreRead) {
  TemporaryDirectory directory;
  const auto found = [&](const std::string& line, const RecordOptions& options = {}) {
    write_file(directory / "a.jsonl", line);
    std::string all;
    for (const Found& document : found_in(directory / "a.jsonl", 1 << 20, options)) all += document.text + "|";
    return all;
  };
  EXPECT_EQ(found("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": "
                  "[{\"type\": \"text\", \"text\": \"b\"}, {\"type\": \"text\", \"text\": \"c\"}]}]}"),
            "user: a\nassistant: bc\n|");
  EXPECT_EQ(
      found("{\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"gpt\", \"value\": \"b\"}], "
            "\"system\": \"s\"}"),
      "system: s\nuser: a\nassistant: b\n|");
  EXPECT_EQ(found("{\"instruction\": \"do\", \"input\": \"this\", \"output\": \"done\"}"),
            "user: do\n\nthis\nassistant: done\n|");
  EXPECT_EQ(found("{\"instruction\": \"do\", \"input\": \"\", \"output\": \"done\"}"), "user: do\nassistant: done\n|");
  RecordOptions field;
  field.text_field = "body";
  EXPECT_EQ(found("{\"body\": \"x\", \"text\": \"y\"}", field), "x|");
  const std::string both = "{\"text\": \"t\", \"instruction\": \"i\", \"output\": \"o\"}";
  EXPECT_EQ(found(both), "user: i\nassistant: o\n|");
  field.text_field = "text";
  EXPECT_EQ(found(both, field), "t|");

  const std::string tools =
      "{\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"observation\", "
      "\"value\": \"b\"}]}";
  EXPECT_NE(message_of([&] { found(tools); }).find("a turn is from 'observation'"), std::string::npos);
  RecordOptions with_tools;
  with_tools.allow_tools = true;
  EXPECT_EQ(found(tools, with_tools), "user: a\ntool: b\n|");
  for (const auto& [line, expected] : std::vector<std::pair<std::string, std::string>>{
           {"{\"messages\": []}", "holds no message"},
           {"{\"messages\": {}}", "'messages' is {}"},
           {"{\"messages\": [7]}", "a message is 7"},
           {"{\"messages\": [{\"role\": \"user\"}]}", "has no 'content'"},
           {"{\"messages\": [{\"role\": \"user\", \"content\": null}]}", "'content' is null"},
           {"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]}", "a part of 'content' is"},
           {"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": 5}]}]}", "a part of 'content' is"},
           {"{\"conversations\": [{\"from\": \"bing\", \"value\": \"\"}]}", "a turn is from 'bing'"},
           {"{\"instruction\": 1, \"output\": \"\"}", "'instruction' is 1"}}) {
    EXPECT_NE(message_of([&] { found(line); }).find(expected), std::string::npos)
        << line << ": " << message_of([&] { found(line); });
  }
}

TEST(Documents, OfOpenR1OnlyVerifiedSolutionsAreTaken) {
  TemporaryDirectory directory;
  const std::string all =
      "{\"problem\": \"p\", \"generations\": [\"x\", \"y\", \"z\"], \"messages\": [], "
      "\"correctness_math_verify\": [true, true, false]}\n";
  const std::string none =
      "{\"problem\": \"q\", \"generations\": [\"x\"], \"correctness_math_verify\": [false]}\n"
      "{\"problem\": \"r\", \"generations\": [\"x\"], \"correctness_math_verify\": null}\n";
  write_file(directory / "a.jsonl", all + none);
  const auto found = [&](Solutions solutions) {
    RecordOptions options;
    options.solutions = solutions;
    return found_in(directory / "a.jsonl", 1 << 20, options);
  };
  EXPECT_EQ(found(Solutions::last_verified), (std::vector<Found>{{"user: p\nassistant: y\n", 1}}));
  EXPECT_EQ(found(Solutions::verified),
            (std::vector<Found>{{"user: p\nassistant: x\n", 1}, {"user: p\nassistant: y\n", 1}}));
  EXPECT_EQ(found(Solutions::all).size(), 5u);
  write_file(directory / "a.jsonl",
             "{\"problem\": \"p\", \"generations\": [\"x\"], \"correctness_math_verify\": []}\n");
  EXPECT_NE(message_of([&] { found(Solutions::verified); }).find("one true or false a generation"), std::string::npos);
}

}  // namespace
}  // namespace dms
