#include "trainer/trained_adapter.h"

#include "checkpoints/export.h"
#include "recipes/user_error.h"

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
    const at::Tensor* angle_G =
        find_tensor(file.tensors, "model.layers." + std::to_string(layer) + ".self_attn.dms_neuron.angle");
    borrowed.emplace_back();
    for (int64_t g = 0; g < a.num_kv_heads; ++g) {
      const float angle = angle_G == nullptr ? 0.0F : (*angle_G)[g].item<float>();
      borrowed.back().push_back({index[2 * g], index[2 * g + 1], angle});
    }
  }
  return borrowed;
}

// What a recipe settles before anything is trained.
AdapterFile settings_of(const Recipe& recipe) {
  AdapterFile file;
  file.adapter = recipe.adapter.kind == AdapterKind::linear ? "linear" : "neuron";
  file.bias = recipe.adapter.bias == AdapterBias::per_head ? "per_head" : "none";
  file.rank = recipe.adapter.rank;
  file.alpha_scale = recipe.eviction.alpha_scale;
  file.alpha_offset = recipe.eviction.alpha_offset;
  file.window = recipe.eviction.window;
  file.decision_shift = recipe.eviction.decision_shift;
  file.zero_after_rope = recipe.adapter.zero_after_rope;
  file.attend_across_documents = recipe.data.attend_across_documents;
  file.target_cr = recipe.compression.final;
  file.sequence_length = recipe.trainer.sequence_length;
  return file;
}

}  // namespace

void require_exportable(const Recipe& recipe, const Architecture& architecture) {
  AdapterFile planned = settings_of(recipe);
  if (recipe.adapter.kind == AdapterKind::neuron && recipe.adapter.channel == AdapterChannel::last) {
    for (int64_t layer = 0; layer < architecture.num_layers; ++layer) {
      at::Tensor index_G2 = at::empty({architecture.num_kv_heads, 2}, at::kLong);
      index_G2.select(1, 0).copy_(at::arange(architecture.num_kv_heads, at::kLong) * architecture.group_size());
      index_G2.select(1, 1).fill_(architecture.head_dim - 1);
      planned.tensors.emplace_back("model.layers." + std::to_string(layer) + ".self_attn.dms_neuron.index", index_G2);
    }
  }
  for (const std::string& name : recipe.export_targets) {
    const std::string reason = find_export_target(name).objection(architecture, planned);
    if (reason.empty()) continue;
    throw UserError("export_targets", "what this recipe trains could not be exported to " + name, {reason});
  }
}

AdapterFile to_adapter_file(const Adapter& adapter, const Recipe& recipe, const AdapterOrigin& origin) {
  AdapterFile file = settings_of(recipe);
  file.alpha_offset = adapter.alpha_offset();
  file.step = origin.step;
  file.base_model = origin.base_model;
  file.base_sha256 = origin.base_sha256;
  file.recipe_sha256 = origin.recipe_sha256;
  for (const Adapter::Parameter& parameter : adapter.parameters()) {
    file.tensors.emplace_back(parameter.name, parameter.tensor.detach());
  }
  for (const auto& constant : adapter.constants()) file.tensors.push_back(constant);
  return file;
}

namespace {

void make_live(TrainedAdapter& trained, WeightSource& source) {
  const AdapterFile& file = trained.file;
  trained.eviction.window = file.window;
  trained.eviction.decision_shift = file.decision_shift;
  trained.eviction.alpha_scale = file.alpha_scale;
  trained.eviction.alpha_offset = file.alpha_offset;
  AdapterOptions options;
  options.kind = file.adapter == "linear" ? AdapterKind::linear : AdapterKind::neuron;
  options.rank = file.rank;
  options.bias = file.bias == "per_head" ? AdapterBias::per_head : AdapterBias::none;
  options.zero_after_rope = file.zero_after_rope;
  trained.adapter = make_adapter(trained.eviction, options, source, borrowed_channels(file, source.architecture()));
  load_parameters(*trained.adapter, file.tensors);
}

}  // namespace

TrainedAdapter load_trained_adapter(const std::string& dir, WeightSource& source,
                                    const std::string& expected_base_sha256) {
  TrainedAdapter trained;
  trained.file = read_adapter_file(dir, source.architecture(), expected_base_sha256);
  make_live(trained, source);
  return trained;
}

void give_bias_per_head(TrainedAdapter& trained, WeightSource& source) {
  AdapterFile& file = trained.file;
  if (file.bias == "per_head") return;
  file.bias = "per_head";
  const std::string part = file.adapter == "linear" ? "dms_proj_alpha" : "dms_neuron";
  for (int64_t layer = 0; layer < source.architecture().num_layers; ++layer) {
    file.tensors.emplace_back("model.layers." + std::to_string(layer) + ".self_attn." + part + ".bias",
                              at::zeros({source.architecture().num_kv_heads}, at::kFloat));
  }
  make_live(trained, source);
}

void take_over_changes(TrainedAdapter& trained) {
  trained.file.alpha_offset = trained.eviction.alpha_offset = trained.adapter->alpha_offset();
  for (const Adapter::Parameter& parameter : trained.adapter->parameters()) {
    for (auto& [name, tensor] : trained.file.tensors) {
      if (name == parameter.name) tensor = parameter.tensor.detach().to(at::kCPU).clone();
    }
  }
}

}  // namespace dms
