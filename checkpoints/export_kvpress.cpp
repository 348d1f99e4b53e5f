#include "checkpoints/export_kvpress.h"

#include <filesystem>

#include "checkpoints/export_templates.h"
#include "checkpoints/model_card.h"
#include "data/staged_file.h"

namespace dms {

namespace fs = std::filesystem;

std::string kvpress_objection(const Architecture&, const AdapterFile& adapters) {
  if (adapters.adapter == "neuron" && adapters.zero_after_rope) {
    return "a press cannot zero the borrowed channel after RoPE: train with adapter.zero_after_rope: false";
  }
  if (adapters.window < adapters.decision_shift) {
    return "it masks keys before the next token has decided about them: train with eviction.window: 1 or more";
  }
  return "";
}

void write_kvpress(const ExportInput& input, const std::string& dir) {
  const std::string readme = make_model_card(kKvpressReadme, input);  // first: it may refuse the evaluation file
  write_adapter_file(dir, input.adapters);
  write_file((fs::path(dir) / "dms_kvpress.py").string(), kKvpressPy);
  write_file((fs::path(dir) / "README.md").string(), readme);
}

}  // namespace dms
