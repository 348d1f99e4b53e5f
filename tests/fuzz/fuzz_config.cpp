// config.json.  What is accepted must have sizes that can be multiplied.
#include "model/architecture.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  dms::expect_at_most_user_error([&] {
    const dms::Architecture model = dms::parse_architecture(dms::text_of(data, size), "config.json");
    if (model.num_layers <= 64 && model.num_parameters() <= 0) std::abort();
    if (model.num_heads % model.num_kv_heads != 0 || model.head_dim % 2 != 0) std::abort();
  });
  return 0;
}
