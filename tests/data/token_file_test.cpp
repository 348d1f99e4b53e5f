#include "data/token_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "data/staged_file.h"
#include "data/token_file_writer.h"
#include "recipes/user_error.h"
#include "tests/support/temporary_directory.h"

namespace dms {
namespace {
namespace fs = std::filesystem;

constexpr uint32_t kVocabSize = 1'000'000;
constexpr size_t kSealBytes = 84;  // what follows the HDF5 data

TokenFileInfo info(bool has_loss_mask = false) {
  TokenFileInfo info;
  info.created_by = "token_file_test";
  info.vocab_size = kVocabSize;
  info.tokenizer_sha256 = std::string(64, 'a');
  info.tokenizer_name = "indices";
  info.eos_token_id = 2;
  info.sources = {{"a.txt", std::string(64, '1'), 10}, {"b.txt", std::string(64, '2'), 20}};
  info.has_loss_mask = has_loss_mask;
  return info;
}

// Token i has id i; documents of the given lengths.
void write_indices(const std::string& path, const std::vector<int64_t>& lengths, bool has_loss_mask = false) {
  TokenFileWriter writer(path, info(has_loss_mask));
  uint32_t next = 0;
  for (size_t document = 0; document < lengths.size(); ++document) {
    std::vector<uint32_t> tokens(static_cast<size_t>(lengths[document]));
    std::iota(tokens.begin(), tokens.end(), next);
    std::vector<uint8_t> mask(has_loss_mask ? tokens.size() : 0);
    for (size_t i = 0; i < mask.size(); ++i) mask[i] = (next + i) % 3 == 0;
    writer.add_document(tokens, document % 2, document + 1, mask);
    next += static_cast<uint32_t>(tokens.size());
  }
  writer.finish();
}

// Without the syncing of write_file, which is slow for hundreds of files.
void write_copy(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::string message_of(const std::string& path) {
  try {
    TokenFile::open(path);
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

TEST(TokenFile, ReadsBackWhatWasWritten) {
  TemporaryDirectory directory;
  const std::string path = directory / "indices.h5";
  write_indices(path, {5, 0, 65531, 65536, 70000, 1}, true);
  const auto file = TokenFile::open(path);
  EXPECT_EQ(file->num_tokens(), 201073);
  EXPECT_EQ(file->vocab_size(), kVocabSize);
  EXPECT_EQ(file->tokenizer_sha256(), std::string(64, 'a'));
  EXPECT_EQ(file->document_offsets(), (std::vector<int64_t>{0, 5, 5, 65536, 131072, 201072, 201073}));
  for (const auto& [begin, end] : {std::pair{0, 201073}, {65535, 65537}, {131071, 131073}, {201072, 201073}, {7, 7}}) {
    std::vector<int32_t> tokens(static_cast<size_t>(end - begin));
    std::iota(tokens.begin(), tokens.end(), begin);
    EXPECT_EQ(file->tokens(begin, end), tokens);
    const std::vector<uint8_t> mask = file->loss_mask(begin, end);
    ASSERT_EQ(mask.size(), tokens.size());
    for (int i = begin; i < end; ++i) ASSERT_EQ(mask[static_cast<size_t>(i - begin)], i % 3 == 0) << i;
  }
  EXPECT_THROW(file->tokens(201072, 201074), std::out_of_range);
  EXPECT_THROW(file->tokens(-1, 1), std::out_of_range);
  const auto attributes = nlohmann::json::parse(file->attributes_json());
  EXPECT_EQ(attributes.at("format"), "dms-tokens");
  EXPECT_EQ(attributes.at("num_documents"), 6);
  EXPECT_EQ(attributes.at("eos_token_id"), 2);
  EXPECT_EQ(attributes.at("pad_token_id"), -1);
  EXPECT_EQ(file->source_names(), (std::vector<std::string>{"a.txt", "b.txt"}));
}

TEST(TokenFile, WithoutMaskGivesAnEmptyMask) {
  TemporaryDirectory directory;
  write_indices(directory / "indices.h5", {100});
  EXPECT_TRUE(TokenFile::open(directory / "indices.h5")->loss_mask(0, 100).empty());
}

TEST(TokenFile, NothingAppearsBeforeFinish) {
  TemporaryDirectory directory;
  {
    TokenFileWriter writer(directory / "indices.h5", info());
    writer.add_document(std::vector<uint32_t>(200'000, 1), 0, 1);
    EXPECT_FALSE(fs::exists(directory / "indices.h5"));
  }
  EXPECT_TRUE(fs::is_empty(directory.path()));
}

TEST(TokenFile, KilledWriterLeavesNothingUnderTheFinalName) {
  TemporaryDirectory directory;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    TokenFileWriter writer(directory / "indices.h5", info());
    for (;;) {
      writer.add_document(std::vector<uint32_t>(100'000, 1), 0, 1);
      if (writer.num_tokens() > 500'000) raise(SIGKILL);
    }
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  EXPECT_FALSE(fs::exists(directory / "indices.h5"));
}

TEST(TokenFile, FileWithoutTokensIsRefused) {
  TemporaryDirectory directory;
  TokenFileWriter writer(directory / "indices.h5", info());
  writer.add_document({}, 0, 1);
  EXPECT_THROW(writer.finish(), UserError);
  EXPECT_FALSE(fs::exists(directory / "indices.h5"));
}

TEST(TokenFile, FullDiskIsAnIoErrorAndLeavesNothing) {
  TemporaryDirectory directory;
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{20'000, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  EXPECT_THROW(write_indices(directory / "indices.h5", {300'000}), IoError);
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_TRUE(fs::is_empty(directory.path()));
  write_indices(directory / "indices.h5", {300'000});  // HDF5 is still usable
  EXPECT_EQ(TokenFile::open(directory / "indices.h5")->num_tokens(), 300'000);
}

TEST(TokenFile, MisuseOfTheWriterIsABug) {
  TemporaryDirectory directory;
  TokenFileWriter writer(directory / "indices.h5", info());
  EXPECT_THROW(writer.add_document(std::vector<uint32_t>{kVocabSize}, 0, 1), std::logic_error);
  EXPECT_THROW(writer.add_document(std::vector<uint32_t>{1}, 2, 1), std::logic_error);
  EXPECT_THROW(writer.add_document(std::vector<uint32_t>{1}, 0, 1, std::vector<uint8_t>{1}), std::logic_error);
}

TEST(TokenFile, SaysWhatIsWrongWithAFileThatIsNone) {
  TemporaryDirectory directory;
  EXPECT_NE(message_of(directory / "none.h5").find("does not exist"), std::string::npos);
  EXPECT_NE(message_of(directory.path()).find("is a directory"), std::string::npos);
  write_file(directory / "text.h5", "some text");
  EXPECT_NE(message_of(directory / "text.h5").find("is not an HDF5 token file"), std::string::npos);
  write_file(directory / "empty.h5", "");
  EXPECT_NE(message_of(directory / "empty.h5").find("is not an HDF5 token file"), std::string::npos);
}

TEST(TokenFile, CutShortAnywhereIsRefused) {
  TemporaryDirectory directory;
  write_indices(directory / "whole.h5", {1000, 70000, 300});
  const std::string bytes = read_file(directory / "whole.h5");
  for (size_t size = 0; size < bytes.size() - kSealBytes; size += size < 4096 ? 61 : bytes.size() / 97) {
    write_copy(directory / "cut.h5", bytes.substr(0, size));
    EXPECT_NE(message_of(directory / "cut.h5"), "") << "cut at byte " << size << " of " << bytes.size();
  }
  write_copy(directory / "cut.h5", bytes.substr(0, bytes.size() - kSealBytes - 1));
  EXPECT_NE(message_of(directory / "cut.h5"), "");
  write_copy(directory / "cut.h5", bytes.substr(0, bytes.size() - 1));  // all data is there
  EXPECT_EQ(message_of(directory / "cut.h5"), "");
}

TEST(TokenFile, FlippedByteIsRefusedWhereverItIs) {
  TemporaryDirectory directory;
  write_indices(directory / "whole.h5", {1000, 70000, 300});
  const std::string bytes = read_file(directory / "whole.h5");
  const size_t seal_begin = bytes.size() - kSealBytes;
  for (size_t at = 0; at < seal_begin; at += 53) {
    std::string flipped = bytes;
    flipped[at] = static_cast<char>(flipped[at] ^ 0x10);
    write_copy(directory / "flipped.h5", flipped);
    EXPECT_NE(message_of(directory / "flipped.h5").find("damaged"), std::string::npos) << "byte " << at;
  }
}

// The seal is ours; the token data has checks of its own, for files that other programs copied or rewrote.
TEST(TokenFile, DamagedTokensAreRefusedWithoutASeal) {
  TemporaryDirectory directory;
  TokenFileWriter writer(directory / "whole.h5", info());
  std::vector<uint32_t> tokens(200'000);  // hard to compress, so that nearly all of the file is tokens
  for (uint32_t i = 0; i < tokens.size(); ++i) tokens[i] = i * 2654435761u % kVocabSize;
  writer.add_document(tokens, 0, 1);
  writer.finish();
  const std::string bytes = read_file(directory / "whole.h5");
  std::string unsealed = bytes.substr(0, bytes.size() - kSealBytes);
  write_copy(directory / "unsealed.h5", unsealed);
  EXPECT_EQ(message_of(directory / "unsealed.h5"), "");
  unsealed[unsealed.size() / 2] = static_cast<char>(unsealed[unsealed.size() / 2] ^ 0x10);
  write_copy(directory / "unsealed.h5", unsealed);
  const std::string message = message_of(directory / "unsealed.h5");
  EXPECT_NE(message.find("'/tokens' cannot be read at elements"), std::string::npos) << message;
}

}  // namespace
}  // namespace dms
