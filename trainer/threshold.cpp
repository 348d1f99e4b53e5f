#include "trainer/threshold.h"

#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <functional>

#include "model/decoder.h"
#include "model/hard_student.h"
#include "trainer/eviction_fit.h"

namespace dms {

namespace {

constexpr int64_t kRounds = 3;
constexpr int64_t kChunkTokens = 256;

// Decision logits of every key beyond the window, [L * G, n], while the evictor runs as it is.
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
                            .slice(1, 0, num_tokens - eviction.window - 1));
  }
  return at::cat(decisions).to(at::kCPU, at::kFloat);
}

// The share of each head's keys that stay.  A head that dropped all it was shown may still want a key in a longer text:
// by the rule of succession no share is 0, so that every ratio is within reach.
std::vector<double> shares_kept(const at::Tensor& decisions_Hn) {
  std::vector<double> shares;
  const auto count = static_cast<double>(decisions_Hn.size(1));
  for (int64_t h = 0; h < decisions_Hn.size(0); ++h) {
    shares.push_back((at::sum(decisions_Hn[h] <= 0.0).item<double>() + 1.0) / (count + 2.0));
  }
  return shares;
}

// The cut of each head: keys with a decision at or below it stay.
at::Tensor cuts(const at::Tensor& decisions_Hn, double share) {
  return at::full({decisions_Hn.size(0)}, order_statistic(decisions_Hn, share), at::kDouble);
}
at::Tensor cuts(const at::Tensor& decisions_Hn, const std::vector<double>& shares) {
  std::vector<double> cut_H;
  for (size_t h = 0; h < shares.size(); ++h) {
    cut_H.push_back(order_statistic(decisions_Hn[static_cast<int64_t>(h)], shares[h]));
  }
  return at::tensor(cut_H, at::kDouble);
}

// Subtracts from the logits of every KV head by its bias.
void lower_bias(Adapter& adapter, const Architecture& a, const at::Tensor& cut_H) {
  for (int64_t layer = 0; layer < a.num_layers; ++layer) {
    const auto parameters = adapter.layer_parameters(layer);
    const auto bias = std::find_if(parameters.begin(), parameters.end(),
                                   [](const Adapter::Parameter& p) { return p.name.ends_with(".bias"); });
    TORCH_CHECK(bias != parameters.end(), "an offset for each KV head needs a bias for each");
    at::Tensor bias_G = bias->tensor;
    bias_G.sub_(cut_H.slice(0, layer * a.num_kv_heads, (layer + 1) * a.num_kv_heads).to(bias_G.options()));
  }
}

}  // namespace

std::vector<double> proportional_shares(const std::vector<double>& now, double share) {
  const auto heads = static_cast<double>(now.size());
  // Heads that keep all they have leave the rest to be shared by the others.
  double factor = 0.0;
  std::vector<double> sorted = now;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  double rest = 0.0;
  for (const double s : now) rest += s;
  for (size_t full = 0; full < sorted.size(); ++full) {
    factor = (share * heads - static_cast<double>(full)) / rest;
    if (factor * sorted[full] <= 1.0) break;
    rest -= sorted[full];
  }
  std::vector<double> shares;
  for (const double s : now) shares.push_back(std::min(1.0, factor * s));
  return shares;
}

double keep_share(double ratio, int64_t num_tokens, int64_t window) {
  const auto tokens = static_cast<double>(num_tokens), near = static_cast<double>(window + 1);
  return (tokens / ratio - near) / (tokens - near);
}

ThresholdResult fit_threshold(WeightSource& source, Adapter& adapter, const EvictionOptions& eviction,
                              double keep_share, OffsetPer offset_per, const std::vector<Sample>& windows,
                              const std::function<void(int64_t, int64_t)>& progress) {
  TORCH_CHECK(!windows.empty() && keep_share > 0.0 && keep_share < 1.0, "a share of some text's keys");
  const at::NoGradGuard no_grad;
  const RopeTables rope = make_rope_tables(source.architecture(), static_cast<int64_t>(windows[0].tokens.size()),
                                           source.embedding().options());
  ThresholdResult result;
  std::vector<double> share_of_head;
  const auto num_windows = static_cast<int64_t>(windows.size());
  for (int64_t round = 0; round < kRounds; ++round) {
    const auto policy = adapter_policy(adapter, eviction);
    std::vector<at::Tensor> seen;
    for (int64_t i = 0; i < num_windows; ++i) {
      seen.push_back(decisions_beyond_window(source, *policy, eviction, rope, windows[static_cast<size_t>(i)]));
      progress(round * num_windows + i + 1, kRounds * num_windows);
    }
    const at::Tensor decisions_Hn = at::cat(seen, 1);
    at::Tensor cut_H;
    if (offset_per == OffsetPer::model) {
      cut_H = cuts(decisions_Hn, keep_share);
      adapter.set_alpha_offset(adapter.alpha_offset() + cut_H[0].item<double>());
    } else {
      if (round == 0) share_of_head = proportional_shares(shares_kept(decisions_Hn), keep_share);
      cut_H = cuts(decisions_Hn, share_of_head);
      lower_bias(adapter, source.architecture(), cut_H);
    }
    result.offset_change += at::mean(cut_H).item<double>();
    result.keep_share.push_back(at::mean((decisions_Hn <= cut_H.unsqueeze(1)).to(at::kDouble)).item<double>());
  }
  return result;
}

}  // namespace dms
