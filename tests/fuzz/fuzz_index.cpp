// model.safetensors.index.json beside two good shards.
#include <filesystem>
#include <fstream>

#include "checkpoints/model_dir.h"
#include "tests/fuzz/fuzz_input.h"

namespace {

std::string make_directory() {
  std::string dir = "/dev/shm/dms-fuzz-index-XXXXXX";
  if (::mkdtemp(dir.data()) == nullptr) std::abort();
  for (const char* name : {"a.safetensors", "b.safetensors"}) {
    const std::string header =
        std::string(R"({")") + name[0] + R"(":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
    std::string bytes(8, '\0');
    bytes[0] = static_cast<char>(header.size());
    std::ofstream(dir + "/" + name, std::ios::binary) << bytes << header << std::string(4, '\0');
  }
  return dir;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const struct Directory {
    std::string path = make_directory();
    ~Directory() { std::filesystem::remove_all(path); }
  } directory;
  std::ofstream(directory.path + "/model.safetensors.index.json", std::ios::binary) << dms::text_of(data, size);
  dms::expect_at_most_user_error([&] {
    for (const auto& [tensor, file] : dms::weight_map(directory.path)) {
      if (file != "a.safetensors" && file != "b.safetensors") std::abort();  // left the directory
    }
  });
  return 0;
}
