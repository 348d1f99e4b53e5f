#include "data/prepare.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "data/token_file.h"
#include "recipes/user_error.h"
#include "tests/data/tiny_tokenizer.h"
#include "tests/support/temporary_directory.h"

namespace dms {
namespace {
namespace fs = std::filesystem;

const std::function<bool()> kNeverStop = [] { return false; };
const std::function<void(const PrepareProgress&)> kSilent = [](const PrepareProgress&) {};

class Prepare : public testing::Test {
 protected:
  Prepare() {
    options_.tokenizer_dir = write_tokenizer(directory_ / "tokenizer", tiny_tokenizer_json());
    options_.out = directory_ / "out.h5";
    options_.inputs = {directory_ / "in"};
    fs::create_directory(directory_ / "in");
  }

  // About 4 MB in small files and one JSONL file: several units of work.
  void write_large_input() {
    for (int i = 0; i < 20; ++i) {
      std::ofstream text(directory_ / ("in/" + std::to_string(i) + ".txt"));
      for (int k = 0; k < 12'000; ++k) text << "abc ab c" << (k * i) % 97 << '\n';
    }
    std::ofstream lines(directory_ / "in/lines.jsonl");
    for (int i = 0; i < 15'000; ++i) lines << "{\"text\": \"line abc " << std::string(i % 190, 'b') << i << "\"}\n";
  }

  std::string message() {
    try {
      prepare(options_, kNeverStop, kSilent);
    } catch (const UserError& error) {
      return error.what();
    }
    return "accepted";
  }

  TemporaryDirectory directory_;
  PrepareOptions options_;
};

std::string all_of(const std::string& path) {
  const auto file = TokenFile::open(path);
  std::string text;
  for (const int32_t id : file->tokens(0, file->num_tokens())) text += std::to_string(id) + " ";
  text += "| ";
  for (const int64_t offset : file->document_offsets()) text += std::to_string(offset) + " ";
  return text;
}

TEST_F(Prepare, WritesTheDocumentsInInputOrder) {
  write_file(directory_ / "in/b.txt", "abc");
  write_file(directory_ / "in/a.jsonl", "{\"text\": \"ab\"}\n{\"text\": \"\"}\n{\"text\": \"cab\"}\n");
  const PrepareResult result = prepare(options_, kNeverStop, kSilent);
  EXPECT_EQ(all_of(options_.out), "256 99 256 257 | 0 1 3 4 ");
  EXPECT_EQ(result.num_documents, 3);
  EXPECT_EQ(result.num_tokens, 4);
  EXPECT_EQ(result.num_sources, 2);
  EXPECT_EQ(result.num_short_documents, 1);
  EXPECT_FALSE(fs::exists(options_.out + ".parts"));
  EXPECT_EQ(TokenFile::open(options_.out)->tokenizer_sha256(), sha256_file(options_.tokenizer_dir + "/tokenizer.json"));
}

TEST_F(Prepare, EosAndMinimumLength) {
  write_file(directory_ / "in/a.jsonl", "{\"text\": \"ab\"}\n{\"text\": \"ab</s>\"}\n{\"text\": \"cccc\"}\n");
  options_.append_eos = true;
  options_.min_tokens = 2;  // "ab" is one token; its EOS does not count
  const PrepareResult result = prepare(options_, kNeverStop, kSilent);
  EXPECT_EQ(all_of(options_.out), "256 261 99 99 99 99 261 | 0 2 7 ");
  EXPECT_EQ(result.num_short_documents, 1);
}

TEST_F(Prepare, BosIsNeverDoubled) {
  nlohmann::json tokenizer = tiny_tokenizer_json();
  tokenizer["post_processor"] = bos_template("<s>", 260);
  write_tokenizer(options_.tokenizer_dir, tokenizer);
  write_file(directory_ / "in/a.jsonl", "{\"text\": \"ab\"}\n{\"text\": \"<s>ab\"}\n");
  prepare(options_, kNeverStop, kSilent);
  EXPECT_EQ(all_of(options_.out), "260 256 260 256 | 0 2 4 ");
}

TEST_F(Prepare, InvalidUtf8IsRepairedAndCounted) {
  write_file(directory_ / "in/a.txt", "ab\xFF");
  write_file(directory_ / "in/b.txt", "ab");
  EXPECT_EQ(prepare(options_, kNeverStop, kSilent).num_repaired_documents, 1);
  EXPECT_EQ(all_of(options_.out), "256 239 191 189 256 | 0 4 5 ");
}

TEST_F(Prepare, ResultDoesNotDependOnTheNumberOfThreads) {
  write_large_input();
  options_.jobs = 1;
  EXPECT_GT(prepare(options_, kNeverStop, kSilent).num_units, 3);
  const std::string one = all_of(options_.out);
  options_.jobs = 7;
  options_.force = true;
  prepare(options_, kNeverStop, kSilent);
  EXPECT_TRUE(all_of(options_.out) == one);
}

TEST_F(Prepare, StoppedAndResumedEqualsUninterrupted) {
  write_large_input();
  prepare(options_, kNeverStop, kSilent);
  const std::string uninterrupted = all_of(options_.out);
  fs::remove(options_.out);

  options_.jobs = 1;
  // Stops as soon as one part lies finished.
  const auto stop = [&] { return fs::exists(options_.out + ".parts/part-000000"); };
  EXPECT_THROW(prepare(options_, stop, kSilent), Interrupted);
  EXPECT_FALSE(fs::exists(options_.out));
  uint64_t resumed_bytes = 0;
  const PrepareResult result = prepare(options_, kNeverStop, [&](const PrepareProgress& p) {
    resumed_bytes = std::max(resumed_bytes, p.resumed_bytes);
  });
  EXPECT_GE(result.num_resumed_units, 1);
  EXPECT_GE(resumed_bytes, 1'000'000u);
  EXPECT_TRUE(all_of(options_.out) == uninterrupted);
}

TEST_F(Prepare, KilledAndResumedEqualsUninterrupted) {
  write_large_input();
  prepare(options_, kNeverStop, kSilent);
  const std::string uninterrupted = all_of(options_.out);
  fs::remove(options_.out);
  for (const char* at : {"part-000000", "part-000002"}) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      options_.jobs = 1;
      const auto die = [&] {
        if (fs::exists(options_.out + ".parts/" + at)) raise(SIGKILL);
        return false;
      };
      prepare(options_, die, kSilent);
      _exit(1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << at;
    EXPECT_FALSE(fs::exists(options_.out));
  }
  EXPECT_GE(prepare(options_, kNeverStop, kSilent).num_resumed_units, 3);
  EXPECT_TRUE(all_of(options_.out) == uninterrupted);
}

TEST_F(Prepare, DamagedPartIsMadeAgain) {
  write_large_input();
  prepare(options_, kNeverStop, kSilent);
  const std::string uninterrupted = all_of(options_.out);
  fs::remove(options_.out);
  const std::string part = options_.out + ".parts/part-000000";
  options_.jobs = 1;
  EXPECT_THROW(prepare(
                   options_, [&] { return fs::exists(part); }, kSilent),
               Interrupted);
  std::string bytes = read_file(part);
  bytes[bytes.size() / 2] ^= 1;
  write_file(part, bytes);
  const int64_t num_others = std::distance(fs::directory_iterator(options_.out + ".parts"), {}) - 3;  // lock, plan, it
  EXPECT_EQ(prepare(options_, kNeverStop, kSilent).num_resumed_units, num_others);
  EXPECT_TRUE(all_of(options_.out) == uninterrupted);
}

TEST_F(Prepare, PartsOfOtherInputsOptionsOrTokenizersAreNotUsed) {
  write_large_input();
  options_.jobs = 1;
  const auto interrupt = [&] {
    const std::string part = options_.out + ".parts/part-000000";
    fs::remove(part);
    EXPECT_THROW(prepare(
                     options_, [&] { return fs::exists(part); }, kSilent),
                 Interrupted);
  };
  const auto resumed = [&] {
    const int64_t count = prepare(options_, kNeverStop, kSilent).num_resumed_units;
    fs::remove(options_.out);
    return count;
  };
  interrupt();
  EXPECT_GE(resumed(), 1);  // nothing changed
  interrupt();
  write_file(directory_ / "in/29.txt", "other text of the last file");
  EXPECT_EQ(resumed(), 0);
  interrupt();
  options_.append_eos = true;
  EXPECT_EQ(resumed(), 0);
  interrupt();
  nlohmann::json tokenizer = tiny_tokenizer_json();
  tokenizer["model"]["merges"] = {"b c"};
  write_tokenizer(options_.tokenizer_dir, tokenizer);
  EXPECT_EQ(resumed(), 0);
}

TEST_F(Prepare, ExistingOutputIsKeptWithoutForce) {
  write_file(directory_ / "in/a.txt", "abc");
  write_file(options_.out, "precious");
  EXPECT_NE(message().find("exists already"), std::string::npos);
  EXPECT_EQ(read_file(options_.out), "precious");
  options_.force = true;
  EXPECT_EQ(message(), "accepted");
  EXPECT_EQ(TokenFile::open(options_.out)->num_tokens(), 1);
}

TEST_F(Prepare, WrongInputNamesTheFirstFaultAndLeavesNothing) {
  write_large_input();
  write_file(directory_ / "in/bad-1.jsonl", "{\"text\": 1}\n");
  write_file(directory_ / "in/bad-2.jsonl", "{\"text\": 2}\n");
  for (int run = 0; run < 5; ++run) {
    EXPECT_NE(message().find("bad-1.jsonl:1: "), std::string::npos);
    EXPECT_FALSE(fs::exists(options_.out));
    EXPECT_FALSE(fs::exists(options_.out + ".parts"));
  }
}

TEST_F(Prepare, SaysWhyItCannotStart) {
  EXPECT_NE(message().find("holds no files"), std::string::npos);
  write_file(directory_ / "in/a.txt", "");
  EXPECT_NE(message().find("would hold no token"), std::string::npos);
  EXPECT_FALSE(fs::exists(options_.out + ".parts"));
  write_file(directory_ / "in/a.txt", "abc");
  const std::string out = std::exchange(options_.out, directory_ / "nowhere/out.h5");
  EXPECT_NE(message().find("nowhere/out.h5.parts: cannot be made"), std::string::npos);
  options_.out = directory_.path();
  EXPECT_NE(message().find("is a directory"), std::string::npos);
  options_.out = out;
  write_tokenizer(options_.tokenizer_dir, tiny_tokenizer_json(), nlohmann::json::object());
  options_.append_eos = true;
  EXPECT_NE(message().find("--append-eos"), std::string::npos);
}

TEST_F(Prepare, TwoAtOnceInOnePlaceAreRefused) {
  write_file(directory_ / "in/a.txt", "abc");
  std::string inner;
  bool asked = false;
  const auto stop = [&] {
    if (fs::exists(options_.out + ".parts/plan") && !std::exchange(asked, true)) inner = message();
    return false;
  };
  prepare(options_, stop, kSilent);
  EXPECT_NE(inner.find("in use by another 'dms prepare'"), std::string::npos) << inner;
}

}  // namespace
}  // namespace dms
