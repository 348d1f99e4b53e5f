#include "trainer/tensorboard.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "data/staged_file.h"

namespace dms {
namespace {

namespace fs = std::filesystem;

std::string hex(std::string_view bytes) {
  std::string text;
  for (const unsigned char byte : bytes) {
    text.push_back("0123456789abcdef"[byte >> 4]);
    text.push_back("0123456789abcdef"[byte & 15]);
  }
  return text;
}

class LogDir : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + "tensorboard_test." + std::to_string(::getpid());
    fs::remove_all(path_);
  }
  void TearDown() override { fs::remove_all(path_); }

  std::string path_;
};
using TensorBoardWriterTest = LogDir;

std::string contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// RFC 3720, appendix B.4, and the check value of the polynomial.
TEST(Crc32c, MatchesTheVectorsOfTheStandard) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(crc32c(std::string(32, '\xFF')), 0x62A8AB43u);
  std::string rising, falling;
  for (int i = 0; i < 32; ++i) {
    rising.push_back(static_cast<char>(i));
    falling.push_back(static_cast<char>(31 - i));
  }
  EXPECT_EQ(crc32c(rising), 0x46DD794Eu);
  EXPECT_EQ(crc32c(falling), 0x113FDB5Cu);
}

// The bytes below were written by the `tensorboard` package 2.21.0 (its protobuf classes and its RecordWriter).
TEST(EventEncoding, FileVersionRecordEqualsTensorBoardsOwn) {
  EXPECT_EQ(hex(tfrecord(file_version_event(1700000000.5))),
            "1800000000000000a37f4b220900002040fc54d9411a0d627261696e2e4576656e743a322b353110");
}

TEST(EventEncoding, SessionStartEqualsTensorBoardsOwn) {
  EXPECT_EQ(hex(tfrecord(session_start_event(1700000001.25, 300))),
            "100000000000000095fbfe180900005040fc54d94110ac023a0208010333a047");
}

TEST(EventEncoding, ScalarsEqualTensorBoardsOwnZeroIncluded) {
  const std::array<TensorBoardScalar, 3> scalars = {{{"loss/kl", 0.1}, {"loss/compression", 0.0}, {"x", -2.5e9}}};
  EXPECT_EQ(hex(tfrecord(scalars_event(1700000002.0, int64_t{1} << 40, scalars))),
            "4500000000000000ebe668b00900008040fc54d941108080808080202a330a0e0a076c6f73732f6b6c15cdcccc3d0a17"
            "0a106c6f73732f636f6d7072657373696f6e15000000000a080a017815f90215cf58f35c1f");
}

TEST_F(TensorBoardWriterTest, StartsWithVersionAndSessionStart) {
  const TensorBoardWriter writer(path_ + "/nested", 7);
  const std::string bytes = contents(writer.path());
  const size_t version_size = tfrecord(file_version_event(1.0)).size();
  ASSERT_EQ(bytes.size(), version_size + tfrecord(session_start_event(1.0, 7)).size());
  // Past the 12-byte frame and the 9 bytes of wall time the contents do not depend on the clock.
  EXPECT_EQ(bytes.substr(12 + 9, 15), file_version_event(1.0).substr(9));
  EXPECT_EQ(bytes.substr(version_size + 12 + 9, 6), session_start_event(1.0, 7).substr(9));
}

TEST_F(TensorBoardWriterTest, ALaterWritersFileSortsAfterEarlierOnesWithinOneSecondAndWhenTheClockWasSetBack) {
  fs::create_directories(path_);
  const std::string future = path_ + "/events.out.tfevents.4000000000.zzz.1.0";
  write_file(future, "");
  write_file(path_ + "/events.out.tfevents.notanumber", "");
  std::string newest = future;
  for (int i = 0; i < 12; ++i) {
    const TensorBoardWriter writer(path_, i);
    EXPECT_GT(writer.path(), newest);
    newest = writer.path();
  }
}

TEST_F(TensorBoardWriterTest, AnEventIsInTheFileAsSoonAsAppendReturns) {
  TensorBoardWriter writer(path_, 0);
  const auto before = fs::file_size(writer.path());
  const std::array<TensorBoardScalar, 1> scalars = {{{"a", 1.0}}};
  writer.append(1, scalars);
  EXPECT_EQ(fs::file_size(writer.path()), before + tfrecord(scalars_event(1.0, 1, scalars)).size());
}

TEST_F(TensorBoardWriterTest, ADirectoryThatCannotBeMadeIsAnIoErrorNamingIt) {
  fs::create_directories(path_);
  write_file(path_ + "/file", "");
  try {
    TensorBoardWriter writer(path_ + "/file/tensorboard", 0);
    FAIL() << "no exception";
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find(path_ + "/file/tensorboard"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace dms
