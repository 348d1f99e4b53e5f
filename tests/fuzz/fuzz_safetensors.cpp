// A whole safetensors file.  What is accepted must be readable to its last byte.
#include "checkpoints/safetensors.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static dms::MemoryFile file;
  dms::expect_at_most_user_error([&] {
    const auto tensors = dms::SafetensorsFile::open(file.holding(dms::text_of(data, size)));
    for (const dms::SafetensorsEntry& entry : tensors->entries()) {
      dms::expect_at_most_user_error([&] { tensors->tensor(entry.name).clone(); });
    }
  });
  return 0;
}
