#include "data/documents.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "data/staged_file.h"
#include "recipes/user_error.h"
#include "tests/support/temporary_directory.h"

namespace dms {
namespace {
namespace fs = std::filesystem;

struct Document {
  std::string text;
  uint64_t line;
  bool operator==(const Document&) const = default;
};

std::vector<Document> documents_of(const std::string& path, uint64_t slice_bytes = 1 << 20) {
  std::vector<TextSource> sources = find_sources({path});
  std::vector<Document> documents;
  for (size_t i = 0; i < sources.size(); ++i) {
    for (const TextSlice& slice : scan(sources[i], static_cast<uint32_t>(i), slice_bytes, [](uint64_t) {})) {
      for_each_document(sources[i], slice, [&](std::string_view text, uint64_t line) {
        documents.push_back({std::string(text), line});
      });
    }
  }
  return documents;
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
  EXPECT_EQ(documents_of(directory / "a.txt"), (std::vector<Document>{{"line 1\nline 2\n", 1}}));
}

TEST(Documents, JsonlLinesAreDocumentsWithTheirLineNumbers) {
  TemporaryDirectory directory;
  write_file(directory / "a.jsonl",
             "\xEF\xBB\xBF{\"text\": \"one\"}\r\n\n  \t\n{\"id\": 7, \"text\": \"t\\u0077o\\n\"}\n{\"text\":\"\"}");
  EXPECT_EQ(documents_of(directory / "a.jsonl"), (std::vector<Document>{{"one", 1}, {"two\n", 4}, {"", 5}}));
}

TEST(Documents, SlicesCutBetweenLinesAndLoseNothing) {
  TemporaryDirectory directory;
  std::string lines;
  std::vector<Document> expected;
  for (uint64_t i = 1; i <= 500; ++i) {
    expected.push_back({std::string(i % 37, 'x') + std::to_string(i), i});
    lines += "{\"text\": \"" + expected.back().text + "\"}" + (i < 500 ? "\n" : "");
  }
  write_file(directory / "a.jsonl", lines);
  for (const uint64_t slice_bytes : {1, 20, 333, 5000, 1'000'000}) {
    EXPECT_EQ(documents_of(directory / "a.jsonl", slice_bytes), expected) << slice_bytes;
  }
  std::vector<TextSource> sources = find_sources({directory / "a.jsonl"});
  EXPECT_GT(scan(sources[0], 0, 333, [](uint64_t) {}).size(), 20u);
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
  EXPECT_NE(message("PAR1 and so on").find("Parquet"), std::string::npos);
  EXPECT_NE(message("\x1f\x8b\x08").find("gunzip"), std::string::npos);
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
    return message_of([&] { documents_of(directory / "a.jsonl"); });
  };
  for (const auto& [line, expected] : std::vector<std::pair<std::string, std::string>>{
           {"{\"text\": \"x\"", "is not valid JSON"},
           {"{\"text\": \"\xFF\"}", "is not valid JSON"},
           {"[1]", "is a JSON array, not an object"},
           {"{\"text\": 7}", "'text' is a number, not a string"},
           {"{\"body\": \"x\", \"id\": 1}", "its keys: 'body', 'id'"},
           {"{\"messages\": []}", "is a record with 'messages'"},
           {"{\"conversations\": []}", "is a record with 'conversations'"},
           {"{\"instruction\": \"\", \"output\": \"\"}", "is a record with 'instruction'"},
           {"{\"problem\": \"\", \"generations\": []}", "is a record with 'problem'"}}) {
    const std::string found = message(line);
    EXPECT_NE(found.find("a.jsonl:3: "), std::string::npos) << found;
    EXPECT_NE(found.find(expected), std::string::npos) << found;
  }
}

TEST(Documents, AFileThatChangesMeanwhileIsRefused) {
  TemporaryDirectory directory;
  write_file(directory / "a.txt", "before");
  std::vector<TextSource> sources = find_sources({directory / "a.txt"});
  const std::vector<TextSlice> slices = scan(sources[0], 0, 100, [](uint64_t) {});
  write_file(directory / "a.txt", "after!");
  EXPECT_NE(message_of([&] {
              for_each_document(sources[0], slices[0], [](std::string_view, uint64_t) {});
            }).find("changed while it was read"),
            std::string::npos);
}

}  // namespace
}  // namespace dms
