#include "data/streamed_text.h"

#include <gtest/gtest.h>

#include "tests/data/tiny_tokenizer.h"
#include "tests/support/temporary_directory.h"

namespace dms {
namespace {

std::shared_ptr<const Tokenizer> tiny() {
  static const TemporaryDirectory directory;
  static const auto tokenizer = Tokenizer::load(write_tokenizer(directory / "tiny", tiny_tokenizer_json()));
  return tokenizer;
}

TEST(StreamedText, HoldsACharacterBackUntilItsLastByteHasCome) {
  StreamedText text(tiny());
  EXPECT_EQ(text.add('a'), "a");
  EXPECT_EQ(text.add(0xE2), "");  // the euro sign, a byte a token
  EXPECT_EQ(text.add(0x82), "");
  EXPECT_EQ(text.add(0xAC), "\xE2\x82\xAC");
  for (int byte : {0xF0, 0x9F, 0x99}) EXPECT_EQ(text.add(byte), "");
  EXPECT_EQ(text.add(0x82), "\xF0\x9F\x99\x82");
  EXPECT_EQ(text.finish(), "");
}

TEST(StreamedText, TheWholeIsWhatDecodingAllAtOnceGives) {
  const std::vector<int32_t> ids = tiny()->encode("abc \xC3\xA9\xE2\x82\xAC ab \xF0\x9F\x99\x82.", false);
  StreamedText text(tiny());
  std::string whole;
  for (int32_t id : ids) whole += text.add(id);
  EXPECT_EQ(whole + text.finish(), tiny()->decode(ids, true));
}

TEST(StreamedText, ShowsWhatNeverBecameACharacter) {
  StreamedText text(tiny());
  EXPECT_EQ(text.add(0xE2), "");
  EXPECT_EQ(text.finish(), "\xEF\xBF\xBD");
  // A lone byte in front of other text is not waited for.
  EXPECT_EQ(text.add(0x82), "");
  EXPECT_EQ(text.add('b'),
            "\xEF\xBF\xBD"
            "b");
}

TEST(StreamedText, SkipsSpecialTokens) {
  StreamedText text(tiny());
  EXPECT_EQ(text.add(261), "");
  EXPECT_EQ(text.add('c'), "c");
}

}  // namespace
}  // namespace dms
