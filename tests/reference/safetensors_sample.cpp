// What this project's safetensors code does with given files, for safetensors_reference.py to judge.
//   safetensors_sample copy IN OUT   reads IN tensor by tensor and writes them to OUT
//   safetensors_sample check FILE... one line a file: "ok" or "refused"
#include <iostream>
#include <string>
#include <vector>

#include "checkpoints/safetensors.h"
#include "recipes/user_error.h"

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() == 3 && arguments[0] == "copy") {
    const auto source = dms::SafetensorsFile::open(arguments[1]);
    dms::NamedTensors tensors;
    for (const dms::SafetensorsEntry& entry : source->entries()) {
      tensors.emplace_back(entry.name, source->tensor(entry.name));
    }
    dms::write_safetensors(arguments[2], {tensors.rbegin(), tensors.rend()}, source->metadata());
    return 0;
  }
  if (arguments.size() < 2 || arguments[0] != "check") return 2;
  for (size_t i = 1; i < arguments.size(); ++i) {
    try {
      dms::SafetensorsFile::open(arguments[i]);
      std::cout << "ok\n";
    } catch (const dms::UserError&) {
      std::cout << "refused\n";
    }
  }
  return 0;
}
