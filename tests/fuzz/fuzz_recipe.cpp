// Recipe YAML, against a table with an option of every type.
#include <string>
#include <vector>

#include "recipes/schema.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  struct {
    int64_t steps = 1, memory_bytes = -1;
    double rate = 0.5;
    bool fast = false;
    std::string name, path;
    std::vector<std::string> files;
    int choice = 0;
  } options;
  const dms::Describe describe = [&](dms::Schema& schema) {
    schema.section("model", "", [&] {
      schema.path("path", options.path, "");
      schema.text("name", options.name, "");
    });
    schema.section("trainer", "", [&] {
      schema.integer("steps", options.steps, 0, 1000, "");
      schema.real("rate", options.rate, 0.0, 1.0, "");
      schema.flag("fast", options.fast, "");
      schema.bytes_or_auto("memory", options.memory_bytes, "");
      schema.choice<int>("choice", options.choice, {{"one", 1}, {"two", 2}}, "");
    });
    schema.list("files", options.files, "");
  };
  dms::expect_at_most_user_error([&] {
    dms::parse_yaml_text("recipe.yaml", dms::text_of(data, size), {}, describe);
    if (options.steps < 0 || options.steps > 1000 || !(options.rate >= 0.0 && options.rate <= 1.0)) std::abort();
    // What was understood is understood again.
    const std::string dumped = dms::dump_yaml(describe);
    dms::parse_yaml_text("again.yaml", dumped, {}, describe);
    if (dms::dump_yaml(describe) != dumped) std::abort();
  });
  return 0;
}
