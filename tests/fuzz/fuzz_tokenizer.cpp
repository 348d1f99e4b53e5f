// tokenizer.json.  What is accepted must be able to encode and decode.
#include <filesystem>
#include <fstream>

#include "data/tokenizer.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const struct Directory {
    std::string path = "/dev/shm/dms-fuzz-tokenizer-XXXXXX";
    Directory() {
      if (::mkdtemp(path.data()) == nullptr) std::abort();
    }
    ~Directory() { std::filesystem::remove_all(path); }
  } directory;
  std::ofstream(directory.path + "/tokenizer.json", std::ios::binary) << dms::text_of(data, size);
  dms::expect_at_most_user_error([&] {
    const auto tokenizer = dms::Tokenizer::load(directory.path);
    const std::string text = "ab <s> é\u0301 12  \r\n'll";
    const auto ids = tokenizer->encode(text, true);
    tokenizer->decode(ids, false);
    const dms::Encoding encoding = tokenizer->encode_with_ends(text);
    if (encoding.ids.size() != encoding.ends.size()) std::abort();
    for (const int32_t id : ids) {
      if (id < 0) std::abort();
    }
  });
  return 0;
}
