#include "trainer/threshold.h"

#include "model/decoder.h"
#include "model/hard_student.h"
#include "trainer/eviction_fit.h"

namespace dms {

namespace {

constexpr int64_t kRounds = 3;
constexpr int64_t kChunkTokens = 256;

// Decision logits of every key beyond the window, all layers and heads, while the evictor runs as it is.
at::Tensor decisions_beyond_window(WeightSource& source, const EvictionPolicy& policy, const EvictionOptions& eviction,
                                   const RopeTables& rope, const Sample& window) {
  const auto num_tokens = static_cast<int64_t>(window.tokens.size());
  const at::Tensor embedded_TD = embed_tokens(source, window.tokens);
  CompactCache cache = make_cache(source.architecture(), policy, embedded_TD.options());
  std::vector<std::vector<at::Tensor>> logits(static_cast<size_t>(source.architecture().num_layers));
  for (int64_t first = 0; first < num_tokens; first += kChunkTokens) {
    std::vector<at::Tensor> chunk;
    hard_student_chunk(source, policy, cache, embedded_TD.slice(0, first, std::min(num_tokens, first + kChunkTokens)),
                       rope, &chunk);
    for (size_t layer = 0; layer < chunk.size(); ++layer) logits[layer].push_back(chunk[layer]);
  }
  std::vector<at::Tensor> decisions;
  for (const auto& layer : logits) {
    decisions.push_back(decisions_GT(at::cat(layer, 1), eviction.decision_shift, {0, num_tokens})
                            .slice(1, 0, num_tokens - eviction.window - 1)
                            .reshape({-1}));
  }
  return at::cat(decisions).to(at::kCPU, at::kFloat);
}

}  // namespace

double keep_share(double ratio, int64_t num_tokens, int64_t window) {
  const auto tokens = static_cast<double>(num_tokens), near = static_cast<double>(window + 1);
  return (tokens / ratio - near) / (tokens - near);
}

ThresholdResult fit_threshold(WeightSource& source, Adapter& adapter, const EvictionOptions& eviction,
                              double keep_share, const std::vector<Sample>& windows,
                              const std::function<void(int64_t, int64_t)>& progress) {
  TORCH_CHECK(!windows.empty() && keep_share > 0.0 && keep_share < 1.0, "a share of some text's keys");
  const at::NoGradGuard no_grad;
  const RopeTables rope = make_rope_tables(source.architecture(), static_cast<int64_t>(windows[0].tokens.size()),
                                           source.embedding().options());
  ThresholdResult result;
  const auto num_windows = static_cast<int64_t>(windows.size());
  for (int64_t round = 0; round < kRounds; ++round) {
    const auto policy = adapter_policy(adapter, eviction);
    std::vector<at::Tensor> seen;
    for (int64_t i = 0; i < num_windows; ++i) {
      seen.push_back(decisions_beyond_window(source, *policy, eviction, rope, windows[static_cast<size_t>(i)]));
      progress(round * num_windows + i + 1, kRounds * num_windows);
    }
    const at::Tensor decisions = at::cat(seen);
    // Keys with a decision at or below the cut stay.
    const double cut = order_statistic(decisions, keep_share);
    adapter.set_alpha_offset(adapter.alpha_offset() + cut);
    result.offset_change += cut;
    result.keep_share.push_back(at::mean((decisions <= cut).to(at::kDouble)).item<double>());
  }
  return result;
}

}  // namespace dms
