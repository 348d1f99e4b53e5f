// The teacher's logits of given token ids, for logits_reference.py to judge.
//   logits_sample MODEL_DIR IDS_FILE OUT.safetensors
// IDS_FILE: one text a line, its token ids separated by spaces.  OUT: "logits.0", "logits.1", ... [T, V] float32.
#include <ATen/ATen.h>

#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "checkpoints/model_dir.h"
#include "checkpoints/safetensors.h"
#include "model/block.h"
#include "model/decoder.h"

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const auto source = dms::open_weights(argv[1], at::kFloat);
  const dms::Architecture& architecture = source->architecture();
  dms::NamedTensors tensors;
  std::ifstream file(argv[2]);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::vector<int32_t> tokens;
    for (int32_t id = 0; words >> id;) tokens.push_back(id);
    const auto num_tokens = static_cast<int64_t>(tokens.size());
    const dms::RopeTables rope = dms::make_rope_tables(architecture, num_tokens, at::TensorOptions().dtype(at::kFloat));
    const dms::DocumentOffsets document{0, num_tokens};
    at::Tensor x_TD = dms::embed_tokens(*source, tokens);
    for (int64_t layer = 0; layer < architecture.num_layers; ++layer) {
      x_TD = dms::teacher_layer(architecture, source->layer(layer), x_TD, {rope, document});
    }
    const at::Tensor normed_TD = dms::rms_norm(x_TD, source->final_norm(), architecture.rms_norm_eps);
    tensors.emplace_back("logits." + std::to_string(tensors.size()), at::linear(normed_TD, source->head()));
  }
  dms::write_safetensors(argv[3], tensors);
  return 0;
}
