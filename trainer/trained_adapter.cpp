#include "trainer/trained_adapter.h"

namespace dms {

namespace {

std::vector<std::vector<BorrowedChannel>> borrowed_channels(const AdapterFile& file, const Architecture& a) {
  std::vector<std::vector<BorrowedChannel>> borrowed;
  if (file.adapter != "neuron") return borrowed;
  for (int64_t layer = 0; layer < a.num_layers; ++layer) {
    const std::string name = "model.layers." + std::to_string(layer) + ".self_attn.dms_neuron.index";
    const at::Tensor* found = find_tensor(file.tensors, name);
    TORCH_CHECK(found != nullptr, name, " passed the reader's checks but is missing");
    const at::Tensor index_G2 = found->contiguous();
    const int64_t* index = index_G2.data_ptr<int64_t>();
    borrowed.emplace_back();
    for (int64_t g = 0; g < a.num_kv_heads; ++g) borrowed.back().push_back({index[2 * g], index[2 * g + 1]});
  }
  return borrowed;
}

}  // namespace

AdapterFile to_adapter_file(const Adapter& adapter, const Recipe& recipe, const AdapterOrigin& origin) {
  AdapterFile file;
  file.adapter = adapter.options().kind == AdapterKind::linear ? "linear" : "neuron";
  file.bias = adapter.options().bias == AdapterBias::per_head ? "per_head" : "none";
  file.rank = adapter.options().rank;
  file.alpha_scale = recipe.eviction.alpha_scale;
  file.alpha_offset = adapter.alpha_offset();
  file.window = recipe.eviction.window;
  file.decision_shift = recipe.eviction.decision_shift;
  file.zero_after_rope = false;
  file.attend_across_documents = recipe.data.attend_across_documents;
  file.target_cr = recipe.compression.final;
  file.step = origin.step;
  file.sequence_length = recipe.trainer.sequence_length;
  file.base_model = origin.base_model;
  file.base_sha256 = origin.base_sha256;
  file.recipe_sha256 = origin.recipe_sha256;
  for (const Adapter::Parameter& parameter : adapter.parameters()) {
    file.tensors.emplace_back(parameter.name, parameter.tensor.detach());
  }
  for (const auto& constant : adapter.constants()) file.tensors.push_back(constant);
  return file;
}

TrainedAdapter load_trained_adapter(const std::string& dir, WeightSource& source,
                                    const std::string& expected_base_sha256) {
  TrainedAdapter trained;
  trained.file = read_adapter_file(dir, source.architecture(), expected_base_sha256);
  const AdapterFile& file = trained.file;
  trained.eviction.window = file.window;
  trained.eviction.decision_shift = file.decision_shift;
  trained.eviction.alpha_scale = file.alpha_scale;
  trained.eviction.alpha_offset = file.alpha_offset;
  AdapterOptions options;
  options.kind = file.adapter == "linear" ? AdapterKind::linear : AdapterKind::neuron;
  options.rank = file.rank;
  options.bias = file.bias == "per_head" ? AdapterBias::per_head : AdapterBias::none;
  trained.adapter = make_adapter(trained.eviction, options, source, borrowed_channels(file, source.architecture()));
  load_parameters(*trained.adapter, file.tensors);
  return trained;
}

}  // namespace dms
