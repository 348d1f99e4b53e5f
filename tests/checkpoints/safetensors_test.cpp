#include "checkpoints/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <random>

#include "tests/support/temporary_directory.h"
#include "tests/support/tiny_model.h"
#include "tests/support/user_error_of.h"

namespace dms {
namespace {

std::string file_bytes(const std::string& header, const std::string& data = "") {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

// A file with two tensors: a F32 [2, 3] and b U8 [5].
std::string small_file() {
  return file_bytes(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                    R"("b":{"dtype":"U8","shape":[5],"data_offsets":[24,29]}})",
                    std::string(29, '\x3f'));
}

std::string open_error(const std::string& bytes) {
  const TemporaryDirectory dir;
  const std::string path = dir / "x.safetensors";
  write_test_file(path, bytes);
  return user_error_of([&] { SafetensorsFile::open(path); });
}

bool bitwise_equal(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         std::memcmp(a.contiguous().data_ptr(), b.contiguous().data_ptr(), a.nbytes()) == 0;
}

TEST(Safetensors, HostileHeadersAreRefusedWithTheReason) {
  struct Case {
    const char* name;
    std::string bytes;
    const char* message;
  };
  const std::string nine = "{\"a\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]}}";
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets, size_t bytes) {
    return file_bytes("{\"a\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}}",
                      std::string(bytes, '\0'));
  };
  const std::string huge_length = std::string("\xff\xff\xff\xff\xff\xff\xff\x7f", 8) + "{}";
  const std::string over_limit = std::string("\x01\xe1\xf5\x05\0\0\0\0", 8) + "{}";  // 100,000,001
  std::string ones;
  for (int i = 0; i < 64; ++i) ones += "1,";
  const Case cases[] = {
      {"empty file", "", "is 0 bytes long: too short"},
      {"seven bytes", "1234567", "is 7 bytes long: too short"},
      {"no header", std::string(8, '\0'), "does not begin with '{'"},
      {"header length near 2^63", huge_length, "announces a header of 9223372036854775807 bytes"},
      {"header length over the limit", over_limit, "expected at most 100000000"},
      {"header past the end", file_bytes(nine).substr(0, 20), "but the file ends at 20"},
      {"header one byte short", file_bytes(nine).substr(0, 8 + nine.size() - 1), "the header should end at byte "},
      {"an array", file_bytes("[]"), "does not begin with '{'"},
      {"leading space", file_bytes(" {}"), "does not begin with '{'"},
      {"not JSON", file_bytes("{\"a\" 1}"), "(header):1:6: not valid JSON"},
      {"two values", file_bytes("{}{}"), "not valid JSON"},
      {"invalid UTF-8", file_bytes("{\"\xff\":1}"), "not valid JSON"},
      {"NUL in the padding", file_bytes(std::string("{}\0", 3)), "not valid JSON"},
      {"lone surrogate", file_bytes("{\"\\ud800\":1}"), "not valid JSON"},
      {"number too large", file_bytes("{\"a\":1e999}"), "not valid JSON"},
      {"depth bomb", file_bytes("{\"a\":" + std::string(1000000, '[')), "nested deeper than 64 levels"},
      {"duplicate tensor", file_bytes(nine.substr(0, nine.size() - 1) + "," + nine.substr(1), std::string(9, 'x')),
       "the key 'a' appears twice"},
      {"duplicate, escaped differently", file_bytes("{\"a\":1,\"\\u0061\":1}"), "the key 'a' appears twice"},
      {"duplicate inside an entry", file_bytes("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"F32\"}}"),
       "the key 'dtype' appears twice"},
      {"entry is a list", file_bytes("{\"a\":[]}"), "tensor 'a': is []"},
      {"no dtype", file_bytes("{\"a\":{\"shape\":[],\"data_offsets\":[0,0]}}"), "has no 'dtype'"},
      {"no shape", file_bytes("{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,0]}}"), "has no 'shape'"},
      {"the stale key 'offsets'", file_bytes("{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"offsets\":[0,0]}}"),
       "has no 'data_offsets'"},
      {"unknown dtype", one("F31", "[1]", "[0,4]", 4), "unknown dtype \"F31\""},
      {"lower-case dtype", one("f32", "[1]", "[0,4]", 4), "unknown dtype \"f32\""},
      {"numeric dtype", file_bytes("{\"a\":{\"dtype\":7,\"shape\":[],\"data_offsets\":[0,0]}}"), "unknown dtype 7"},
      {"shape is a number", one("U8", "9", "[0,9]", 9), "'shape' is 9"},
      {"negative size", one("U8", "[-1]", "[0,9]", 9), "'shape' is [-1]"},
      {"fractional size", one("U8", "[9.0]", "[0,9]", 9), "'shape' is [9.0]"},
      {"size beyond 64 bits", one("U8", "[18446744073709551616]", "[0,9]", 9), "'shape' is ["},
      {"element count wraps to 0", one("U8", "[4294967296,4294967296]", "[0,0]", 0), "is too large"},
      {"bit count wraps to 0", one("F64", "[2305843009213693952]", "[0,0]", 0), "is too large"},
      {"zero hides an overflow", one("U8", "[0,4294967296,4294967296]", "[0,0]", 0), "is too large"},
      {"zero after an overflow", one("U8", "[4294967296,4294967296,0]", "[0,0]", 0), "is too large"},
      {"65 dimensions", one("U8", "[" + ones + "1]", "[0,1]", 1), "has 65 dimensions"},
      {"half a byte", one("F4", "[3]", "[0,1]", 1), "does not fill whole bytes"},
      {"offsets is a number", one("U8", "[9]", "9", 9), "'data_offsets' is 9"},
      {"three offsets", one("U8", "[9]", "[0,9,9]", 9), "'data_offsets' is [0,9,9]"},
      {"negative offset", one("U8", "[9]", "[-9,0]", 9), "'data_offsets' is [-9,0]"},
      {"backwards", one("U8", "[0]", "[9,0]", 9), "ends before it begins"},
      {"end near 2^64", one("U8", "[9]", "[18446744073709551606,18446744073709551615]", 9), "is too large"},
      {"span too short", one("F32", "[2]", "[0,7]", 7), "spans 7 bytes\n  F32 [2] takes 8"},
      {"span too long", one("F32", "[2]", "[0,9]", 9), "spans 9 bytes"},
      {"does not start at 0", one("U8", "[1]", "[1,2]", 2), "begins at data byte 1, after a hole"},
      {"overlap",
       file_bytes("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
                  "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}",
                  "123456"),
       "tensor 'b' begins at data byte 2, inside the tensor before it"},
      {"the same bytes twice",
       file_bytes("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
                  "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
                  "1234"),
       "tensor 'b' begins at data byte 0, inside"},
      {"hole",
       file_bytes("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                  "\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,3]}}",
                  "123"),
       "tensor 'b' begins at data byte 2, after a hole"},
      {"trailing bytes", small_file() + "!", "the last tensor ends at byte "},
      {"data without tensors", file_bytes("{}", "!"), "the last tensor ends at byte 10, but the file at byte 11"},
      {"metadata is a list", file_bytes("{\"__metadata__\":[]}"), "'__metadata__' is []"},
      {"metadata holds a number", file_bytes("{\"__metadata__\":{\"v\":1}}"), "'__metadata__' key 'v' is 1"},
      {"control characters in a name", file_bytes("{\"\\u001b[2J\":1}"), "tensor '\\x1b[2J': is 1"},
  };
  for (const Case& c : cases) EXPECT_TRUE(says(open_error(c.bytes), c.message)) << c.name;
}

TEST(Safetensors, ATruncatedFileNamesTheTensorAndTheBytes) {
  const std::string bytes = small_file();
  const std::string size = std::to_string(bytes.size());
  const std::string message = open_error(bytes.substr(0, bytes.size() - 2));
  EXPECT_TRUE(says(message, "'b' (U8 [5]) should end at byte " + size + ",\n  but the file ends at " +
                                std::to_string(bytes.size() - 2) + " (2 bytes short)\n  the file looks truncated"));
  EXPECT_TRUE(says(open_error(bytes.substr(0, bytes.size() - 6)),
                   "'a' (F32 [2, 3]) should end at byte " + std::to_string(bytes.size() - 5)));
}

TEST(Safetensors, EveryTruncationIsAUserError) {
  const std::string bytes = small_file();
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_NE(open_error(bytes.substr(0, length)), "(no UserError)") << length;
  }
}

TEST(Safetensors, FlippedHeaderBytesGiveAUserErrorOrReadableTensors) {
  const std::string original = small_file();
  const size_t header_end = original.size() - 29;
  const TemporaryDirectory dir;
  const std::string path = dir / "x.safetensors";
  std::mt19937 random(7);
  int num_refused = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string bytes = original;
    for (int flips = 1 + static_cast<int>(random() % 3); flips > 0; --flips) {
      bytes[random() % header_end] ^= static_cast<char>(1 + random() % 255);
    }
    write_test_file(path, bytes);
    try {
      const auto file = SafetensorsFile::open(path);
      for (const SafetensorsEntry& entry : file->entries()) {
        const at::Tensor tensor = file->tensor(entry.name);
        EXPECT_EQ(tensor.nbytes(), entry.end - entry.begin);
        EXPECT_EQ(std::string(static_cast<const char*>(tensor.data_ptr()), tensor.nbytes()),
                  std::string(tensor.nbytes(), '\x3f'));
      }
    } catch (const UserError&) {
      ++num_refused;
    }
  }
  // Renamed tensors and metadata remain valid files; most flips do not.
  EXPECT_GT(num_refused, 1000);
  EXPECT_LT(num_refused, 2000);
}

TEST(Safetensors, WhatIsWrittenIsReadBackToTheBit) {
  const TemporaryDirectory dir;
  const std::string path = dir / "x.safetensors";
  const at::Tensor values = at::arange(-7, 8, at::kFloat).reshape({3, 5}) / 3;
  const NamedTensors tensors = {
      {"f32", values},
      {"f16", values.to(at::kHalf)},
      {"bf16", values.to(at::kBFloat16)},
      {"f64", values.to(at::kDouble)},
      {"i64", at::arange(-3, 4, at::kLong)},
      {"u8", at::arange(0, 7, at::kByte)},
      {"transposed", values.t()},
      {"strided", values.slice(1, 0, 5, 2)},
      {"scalar", at::scalar_tensor(2.5, at::kFloat)},
      {"empty", at::empty({0, 4}, at::kBFloat16)},
      {"empty.last", at::empty({3, 0}, at::kByte)},
      {"not finite", at::tensor({NAN, INFINITY, -0.0f})},
      {"na\"me\n\xc3\xa9", at::ones({1})},
  };
  write_safetensors(path, tensors, {{"note", "with \"quotes\""}});

  const auto file = SafetensorsFile::open(path);
  EXPECT_EQ(file->entries().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_TRUE(bitwise_equal(file->tensor(name), tensor)) << name;
  }
  EXPECT_EQ(file->metadata(), (std::map<std::string, std::string>{{"format", "pt"}, {"note", "with \"quotes\""}}));
  EXPECT_EQ(file->find("absent"), nullptr);
  EXPECT_TRUE(says(user_error_of([&] { file->tensor("absent"); }), "has no tensor 'absent'"));
}

TEST(Safetensors, TensorsOutliveTheFileObjectAndShareItsMapping) {
  const TemporaryDirectory dir;
  const std::string path = dir / "x.safetensors";
  write_safetensors(path, {{"a", at::arange(6, at::kFloat)}});
  at::Tensor first, second;
  {
    const auto file = SafetensorsFile::open(path);
    first = file->tensor("a");
    second = file->tensor("a");
  }
  std::filesystem::remove(path);
  EXPECT_EQ(first.data_ptr(), second.data_ptr());
  EXPECT_TRUE(first.equal(at::arange(6, at::kFloat)));
}

TEST(Safetensors, UnalignedDataIsCopiedNotMisread) {
  // A header of odd length puts the data at an odd address; a U8 tensor before it as well.
  const float values[] = {1.5f, -2.0f};
  std::string data = "x";
  data.append(reinterpret_cast<const char*>(values), 8);
  std::string header = R"({"u":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("f":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})";
  const TemporaryDirectory dir;
  const std::string path = dir / "x.safetensors";
  for (int padding = 0; padding < 8; ++padding, header += ' ') {
    write_test_file(path, file_bytes(header, data));
    const at::Tensor tensor = SafetensorsFile::open(path)->tensor("f");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % alignof(float), 0u);
    EXPECT_TRUE(tensor.equal(at::tensor({1.5f, -2.0f}))) << padding;
  }
}

TEST(Safetensors, ValidFilesOfOtherDtypesOpenButDoNotLoad) {
  const TemporaryDirectory dir;
  const std::string path = dir / "x.safetensors";
  write_test_file(path, file_bytes(R"({"q":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})", "abcd"));
  const auto file = SafetensorsFile::open(path);
  EXPECT_TRUE(says(user_error_of([&] { file->tensor("q"); }), "tensor 'q' is stored as F8_E4M3"));
}

TEST(Safetensors, MissingFilesAndDirectoriesAreUserErrors) {
  const TemporaryDirectory dir;
  EXPECT_TRUE(says(user_error_of([&] { SafetensorsFile::open(dir / "none"); }), "No such file or directory"));
  EXPECT_TRUE(says(user_error_of([&] { SafetensorsFile::open(dir.path()); }), "not a regular file"));
}

}  // namespace
}  // namespace dms
