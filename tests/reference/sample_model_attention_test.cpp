// Both attention paths on the sample model's own queries, keys and values, under the eviction logits that a trained
// evictor approximates: those of the warm start's labels.  Real attention has what random numbers lack: sinks whose scores
// lie tens of nats above the rest, and heads that keep half of their keys beside heads that keep none.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "checkpoints/model_dir.h"
#include "data/tokenizer.h"
#include "model/attention.h"
#include "model/attention_reference.h"
#include "model/decoder.h"
#include "model/noise.h"
#include "model/survivors.h"
#include "tests/support/tensor_comparison.h"
#include "trainer/importance.h"

namespace dms {
namespace {

constexpr int64_t kTokens = 900, kWindow = 64;

std::vector<int32_t> sample_tokens(const std::string& model) {
  std::ostringstream text;
  text << std::ifstream(DMS_SOURCE_DIR "/README.md").rdbuf();
  std::vector<int32_t> tokens = Tokenizer::load(model)->encode(text.str(), false);
  TORCH_CHECK(static_cast<int64_t>(tokens.size()) >= kTokens, "README.md is shorter than ", kTokens, " tokens");
  tokens.resize(kTokens);
  return tokens;
}

// Logits whose sign keeps the most important eighth of the layer's keys and whose size follows their importance.
at::Tensor ideal_logit_GT(const at::Tensor& importance_GT) {
  const at::Tensor log_GT = at::log(importance_GT + 1e-12);
  const at::Tensor far = log_GT.slice(1, 0, kTokens - kWindow - 1).flatten();
  return 1.5 * (at::quantile(far, 0.875) - log_GT);
}

std::vector<at::Tensor> output_and_gradients(AttentionPath path, const std::vector<at::Tensor>& leaves,
                                             const at::Tensor& dout) {
  const at::Tensor out =
      delayed_eviction_attention(leaves[0], leaves[1], leaves[2], leaves[3], kWindow, {0, kTokens}, path);
  std::vector<at::Tensor> result = torch::autograd::grad({out}, leaves, {dout.to(out.scalar_type())});
  result.push_back(out.detach());
  return result;
}

TEST(SampleModelAttention, IsExactUnderTrainedLogits) {
  const char* model = std::getenv("DMS_SAMPLE_MODEL");
  ASSERT_NE(model, nullptr);
  const auto source = open_weights(model, at::kFloat);
  const Architecture& architecture = source->architecture();
  const DocumentOffsets documents{0, kTokens};
  const RopeTables rope = make_rope_tables(architecture, kTokens, source->embedding().options());
  EvictionOptions eviction;
  eviction.window = kWindow;

  at::Tensor x_TD = embed_tokens(*source, sample_tokens(model));
  int64_t num_survivors = 0, num_keys = 0;
  for (int64_t layer = 0; layer < architecture.num_layers; ++layer) {
    const LayerWeights weights = source->layer(layer);
    if (layer % 6 == 0) {  // layer 18 has the strongest sinks
      SCOPED_TRACE(layer);
      const at::Tensor normed_TD = rms_norm(x_TD, weights.input_norm, architecture.rms_norm_eps);
      const AttentionInputs in = attention_inputs(architecture, weights, normed_TD, rope, {});
      const FlashOutput plain = causal_attention(in.q_BHTd, in.k_BGTd, in.v_BGTd, documents);
      const at::Tensor logit_GT = ideal_logit_GT(
          key_importance_GT(architecture, weights, in, plain.out_BHTd, plain.lse_BHT, x_TD, kWindow, documents));
      const at::Tensor noise_GT = logistic_noise_GT(1, 0, 0, layer, architecture.num_kv_heads, kTokens);
      const at::Tensor bias_BGT = relax(logit_GT, noise_GT, eviction, documents).bias_GT.unsqueeze(0);
      const Survivors survivors(gone_keys(bias_BGT).select(0, 0), kWindow, 256);
      for (int64_t g = 0; g < survivors.num_heads(); ++g) num_survivors += survivors.num_keys(g);
      num_keys += survivors.num_heads() * survivors.num_rows();

      for (const auto& [dtype, tolerance] : {std::pair{at::kFloat, 5e-6}, std::pair{at::kDouble, 1e-12}}) {
        std::vector<at::Tensor> leaves;
        for (const at::Tensor& x : {in.q_BHTd, in.k_BGTd, in.v_BGTd, bias_BGT}) {
          leaves.push_back(x.to(dtype).clone().set_requires_grad(true));
        }
        const at::Tensor dout = seeded_normal(in.q_BHTd.sizes(), 7).to(dtype);
        const at::Tensor expected_out =
            dense_delayed_eviction_attention(leaves[0], leaves[1], leaves[2], leaves[3], kWindow, documents);
        std::vector<at::Tensor> expected = torch::autograd::grad({expected_out}, leaves, {dout.to(at::kDouble)});
        expected.push_back(expected_out.detach());
        for (AttentionPath path : {AttentionPath::dense, AttentionPath::sparse}) {
          const std::vector<at::Tensor> actual = output_and_gradients(path, leaves, dout);
          for (size_t i = 0; i < expected.size(); ++i) {
            EXPECT_TRUE(is_near(actual[i], expected[i], tolerance))
                << "tensor " << i << " path " << static_cast<int>(path) << " " << at::toString(dtype);
          }
        }
      }
    }
    x_TD = teacher_layer(architecture, weights, x_TD, {rope, documents});
  }
  const double share = static_cast<double>(num_survivors) / static_cast<double>(num_keys);
  EXPECT_GT(share, 0.125);  // the logits did what they are for
  EXPECT_LT(share, 0.6);
}

}  // namespace
}  // namespace dms
