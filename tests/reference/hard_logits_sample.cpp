// The hard path of `dms eval` over given token ids, for export_agreement_reference.py to compare with an export.
//   hard_logits_sample MODEL_DIR ADAPTER_DIR IDS_FILE CHUNK OUT.safetensors
// IDS_FILE: token ids separated by spaces.  CHUNK: tokens a prefill chunk; 1 = token by token.
// OUT: "logits" [T, V] and, per layer, "eviction.L" [G, T], float32.
#include <ATen/ATen.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "checkpoints/model_dir.h"
#include "checkpoints/safetensors.h"
#include "model/block.h"
#include "model/decoder.h"
#include "model/hard_student.h"
#include "trainer/trained_adapter.h"

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const auto source = dms::open_weights(argv[1], at::kFloat);
  const dms::Architecture& architecture = source->architecture();
  const dms::TrainedAdapter trained = dms::load_trained_adapter(argv[2], *source, "");
  std::ifstream file(argv[3]);
  std::vector<int32_t> tokens;
  for (int32_t id = 0; file >> id;) tokens.push_back(id);
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  const int64_t chunk = std::stol(argv[4]);

  const at::Tensor embedded_TD = dms::embed_tokens(*source, tokens);
  const dms::RopeTables rope = dms::make_rope_tables(architecture, num_tokens, embedded_TD.options());
  const auto policy = dms::adapter_policy(*trained.adapter, trained.eviction);
  dms::CompactCache cache = dms::make_cache(architecture, *policy, embedded_TD.options());
  std::vector<at::Tensor> outs;
  std::vector<std::vector<at::Tensor>> logits_of_layer(static_cast<size_t>(architecture.num_layers));
  for (int64_t first = 0; first < num_tokens; first += chunk) {
    std::vector<at::Tensor> logits;
    outs.push_back(dms::hard_student_chunk(
        *source, *policy, cache, embedded_TD.slice(0, first, std::min(num_tokens, first + chunk)), rope, &logits));
    for (size_t layer = 0; layer < logits.size(); ++layer) logits_of_layer[layer].push_back(logits[layer]);
  }
  const at::Tensor normed_TD = dms::rms_norm(at::cat(outs), source->final_norm(), architecture.rms_norm_eps);
  dms::NamedTensors tensors{{"logits", at::linear(normed_TD, source->head())}};
  for (size_t layer = 0; layer < logits_of_layer.size(); ++layer) {
    tensors.emplace_back("eviction." + std::to_string(layer), at::cat(logits_of_layer[layer], 1).contiguous());
  }
  dms::write_safetensors(argv[5], tensors);
  return 0;
}
