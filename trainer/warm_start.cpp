#include "trainer/warm_start.h"

#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <chrono>
#include <utility>

#include "model/attention.h"
#include "model/block.h"
#include "model/noise.h"
#include "recipes/user_error.h"
#include "trainer/importance.h"
#include "trainer/ordered_sum.h"
#include "trainer/row_sample.h"

namespace dms {

namespace {

// Sequences whose importance sets the threshold: a quantile over all their (layer, head, key) triples.
constexpr size_t kPilotSequences = 6;

struct CalibrationSequence {
  int64_t sample = 0;  // of all
  DocumentOffsets documents;
  at::Tensor x_TD;
};

DocumentOffsets documents_of(const Sample& sample, bool attend_across_documents) {
  return attend_across_documents ? DocumentOffsets{0, std::ssize(sample.tokens)} : sample.document_offsets;
}

// This rank's share of the first `count` samples.
std::vector<CalibrationSequence> embed(WeightSource& source, const std::vector<Sample>& samples, size_t count,
                                       bool attend_across_documents, const RankGroup& ranks) {
  std::vector<CalibrationSequence> sequences;
  std::vector<std::vector<int32_t>> tokens;
  const auto [begin, end] =
      share_of_rank(static_cast<int64_t>(std::min(count, samples.size())), ranks.rank(), ranks.size());
  for (size_t s = static_cast<size_t>(begin); s < static_cast<size_t>(end); ++s) {
    sequences.push_back({static_cast<int64_t>(s), documents_of(samples[s], attend_across_documents), {}});
    tokens.push_back(samples[s].tokens);
  }
  const std::vector<at::Tensor> embedded = embed_sequences(source, tokens);  // by ranks, too, that have no sequence
  for (size_t i = 0; i < sequences.size(); ++i) sequences[i].x_TD = embedded[i];
  return sequences;
}

// The keys that the fit sees, and the token whose features decide about each.
std::vector<int64_t> fitted_keys(const DocumentOffsets& documents, int64_t window) {
  std::vector<int64_t> keys;
  for (size_t j = 0; j + 1 < documents.size(); ++j) {
    const int64_t begin = documents[j], end = documents[j + 1];
    const int64_t fewest = fewest_far_queries(end - begin);
    for (int64_t k = begin; k + window + fewest < end; ++k) keys.push_back(k);
  }
  return keys;
}

// Runs one layer of the teacher over a sequence, moving its x_TD on, and returns what the fit needs: importance and, when
// wanted, features, with their scale where the adapter has one.
FitRows observe_layer(const Architecture& a, const LayerWeights& weights, const Adapter& adapter,
                      const EvictionOptions& eviction, int64_t layer, const RopeTables& rope,
                      CalibrationSequence& sequence, bool with_features) {
  const at::Tensor normed_TD = rms_norm(sequence.x_TD, weights.input_norm, a.rms_norm_eps);
  const AttentionInputs in = attention_inputs(a, weights, normed_TD, rope, {});
  const FlashOutput attention = causal_attention(in.q_BHTd, in.k_BGTd, in.v_BGTd, sequence.documents);
  const at::Tensor importance_GT = key_importance_GT(a, weights, in, attention.out_BHTd, attention.lse_BHT,
                                                     sequence.x_TD, eviction.window, sequence.documents);
  const at::Tensor keys_N =
      at::tensor(fitted_keys(sequence.documents, eviction.window), at::kLong).to(sequence.x_TD.device());
  FitRows observation;
  observation.importance_NG = importance_GT.index_select(1, keys_N).t().contiguous();
  if (with_features) {
    const at::Tensor deciders_N = keys_N + eviction.decision_shift;
    observation.features_ND = adapter.features_TD(layer, sequence.x_TD, normed_TD).index_select(0, deciders_N);
    const at::Tensor scale_TG = adapter.feature_scale_TG(layer, normed_TD);
    if (scale_TG.defined()) observation.scale_NG = scale_TG.index_select(0, deciders_N);
  }
  sequence.x_TD = finish_layer(a, weights, sequence.x_TD, attention.out_BHTd);
  return observation;
}

struct Pilot {
  double threshold = 0.0;
  std::vector<double> mean_cost;  // [L] of deciding a row wrongly
};

Pilot run_pilot(WeightSource& source, const Adapter& adapter, const EvictionOptions& eviction,
                const WarmStartOptions& options, const RopeTables& rope, std::vector<CalibrationSequence> sequences,
                RankGroup& ranks) {
  const Architecture& a = source.architecture();
  std::vector<at::Tensor> all{at::empty({0}, at::kFloat)};  // a rank may have no sequence
  std::vector<std::vector<at::Tensor>> of_layer(static_cast<size_t>(a.num_layers));
  for (int64_t layer = 0; layer < a.num_layers; ++layer) {
    const LayerWeights weights = source.layer(layer);
    for (CalibrationSequence& sequence : sequences) {
      of_layer[static_cast<size_t>(layer)].push_back(
          observe_layer(a, weights, adapter, eviction, layer, rope, sequence, false).importance_NG.to(at::kCPU));
      all.push_back(of_layer[static_cast<size_t>(layer)].back().reshape({-1}));
    }
  }
  Pilot pilot;
  pilot.threshold =
      order_statistic(ranks.all_gather_rows(at::cat(all), "the warm start's pilot"), 1.0 - 1.0 / options.compression);

  for (const std::vector<at::Tensor>& of_sequence : of_layer) {
    at::Tensor sum_and_count_S2 = at::empty({std::ssize(of_sequence), 2}, at::kDouble);
    for (size_t s = 0; s < of_sequence.size(); ++s) {
      const at::Tensor cost_N = row_costs_N(of_sequence[s], pilot.threshold, options.fit.weight_cap);
      sum_and_count_S2[static_cast<int64_t>(s)][0] = ordered_sum(cost_N);
      sum_and_count_S2[static_cast<int64_t>(s)][1] = cost_N.numel();
    }
    const at::Tensor total_2 = ranks.all_gather_rows(sum_and_count_S2, "the warm start's pilot").sum(0);
    pilot.mean_cost.push_back(total_2[0].item<double>() / total_2[1].item<double>());
  }
  return pilot;
}

// Of one sequence's rows in one layer those that the fit holds, when it does not hold all.
FitRows thinned(const FitRows& rows, int64_t layer, int64_t sample, const Pilot& pilot, double share,
                const FitOptions& options) {
  const at::Tensor cost_N = row_costs_N(rows.importance_NG, pilot.threshold, options.weight_cap);
  const at::Tensor noise_N = logistic_noise_GT(0, 0, sample, layer, 1, cost_N.numel())[0];
  const RowSample held = sample_rows(cost_N, pilot.mean_cost[static_cast<size_t>(layer)], share, noise_N);
  const auto select = [&](const at::Tensor& x) { return x.defined() ? x.index_select(0, held.row_M) : at::Tensor(); };
  return {select(rows.features_ND), select(rows.scale_NG), select(rows.importance_NG), held.weight_M};
}

// Rows that come sequence by sequence, joined as they come: parts beside the whole would take twice the memory.
class JoinedRows {
 public:
  // `expected`: how many come, about.
  JoinedRows(int64_t expected, int64_t columns) : expected_(expected), columns_(columns) {}

  void append(const at::Tensor& rows_nC) {
    const int64_t count = count_ + rows_nC.size(0);
    if (!all_NC_.defined() || count > all_NC_.size(0)) {
      const at::Tensor larger_NC = at::empty({std::max(expected_, count + count / 8), columns_}, rows_nC.options());
      if (count_ > 0) larger_NC.slice(0, 0, count_).copy_(rows());
      all_NC_ = larger_NC;
    }
    all_NC_.slice(0, count_, count).copy_(rows_nC);
    count_ = count;
  }
  at::Tensor rows() const {
    return all_NC_.defined() ? all_NC_.slice(0, 0, count_) : at::empty({0, columns_}, at::kFloat);
  }
  int64_t bytes() const { return all_NC_.defined() ? static_cast<int64_t>(all_NC_.nbytes()) : 0; }

 private:
  const int64_t expected_, columns_;
  at::Tensor all_NC_;
  int64_t count_ = 0;
};

struct LayerFit {
  KeepFunction keep;
  at::Tensor score_NG, weight_N;
};

LayerFit fit_layer(const FitRows& rows, double threshold, const FitOptions& options) {
  LayerFit fit;
  fit.keep = fit_keep_function(rows, threshold, options);
  fit.score_NG = at::matmul(rows.features_ND, fit.keep.weight_GD.t());
  if (rows.scale_NG.defined()) fit.score_NG.mul_(rows.scale_NG);
  fit.score_NG.add_(fit.keep.intercept_G);
  fit.weight_N = rows.weight_N;
  return fit;
}

// Gives every rank every layer's fit.
void share_fits(std::vector<LayerFit>& fits, bool thinned, RankGroup& ranks) {
  for (int64_t layer = 0; layer < static_cast<int64_t>(fits.size()); ++layer) {
    LayerFit& fit = fits[static_cast<size_t>(layer)];
    const auto share = [&](at::Tensor& tensor) {
      tensor =
          ranks.broadcast_from(tensor, layer % ranks.size(), "the warm start's fit of layer " + std::to_string(layer));
    };
    share(fit.keep.weight_GD);
    share(fit.keep.intercept_G);
    share(fit.score_NG);
    if (thinned) share(fit.weight_N);
  }
}

}  // namespace

int64_t fewest_far_queries(int64_t document_length) {
  constexpr int64_t kFewest = 64;
  return std::min(kFewest, document_length / 8 + 1);
}

void describe(Schema& schema, WarmStartOptions& o) {
  schema.integer("tokens", o.tokens, 0, int64_t{1} << 40, "calibration tokens for the fit before training; 0 = off");
  schema.real("compression", o.compression, 1.0, 1e6, "compression ratio whose budget the fit meets");
  schema.integer("fit_rows", o.fit_rows, 1024, int64_t{1} << 40,
                 "tokens that a layer's fit holds, about; of more than that the costliest and a sample");
  schema.integer("iterations", o.fit.iterations, 0, 100000, "optimizer iterations a layer");
  schema.real("weight_cap", o.fit.weight_cap, 1.0, 1e9, "largest cost of one wrong decision, in thresholds");
  schema.real("weight_decay", o.fit.weight_decay, 0.0, 1e3, "L2 penalty of the fit");
}

WarmStartResult warm_start(WeightSource& source, Adapter& adapter, const EvictionOptions& eviction,
                           const WarmStartOptions& options, bool attend_across_documents, const RopeTables& rope,
                           const std::vector<Sample>& samples, const std::function<void(int64_t, int64_t)>& progress,
                           const std::function<bool()>& stop, RankGroup& ranks) {
  const at::NoGradGuard no_grad;
  const auto begin = std::chrono::steady_clock::now();
  const Architecture& a = source.architecture();
  WarmStartResult result;
  const Pilot pilot = run_pilot(source, adapter, eviction, options, rope,
                                embed(source, samples, kPilotSequences, attend_across_documents, ranks), ranks);
  result.threshold = pilot.threshold;

  std::vector<CalibrationSequence> sequences = embed(source, samples, samples.size(), attend_across_documents, ranks);
  int64_t num_rows = 0;
  for (const Sample& sample : samples) {
    result.tokens += std::ssize(sample.tokens);
    num_rows += std::ssize(fitted_keys(documents_of(sample, attend_across_documents), eviction.window));
  }
  const bool thin = num_rows > options.fit_rows;
  const double share = static_cast<double>(options.fit_rows) / static_cast<double>(std::max<int64_t>(1, num_rows));
  int64_t my_rows = 0, stream_bytes = 0;  // of this rank's sequences; in a layer's fit
  for (const CalibrationSequence& sequence : sequences) {
    my_rows += std::ssize(fitted_keys(sequence.documents, eviction.window));
    stream_bytes += static_cast<int64_t>(sequence.x_TD.nbytes());
  }
  if (thin) my_rows = static_cast<int64_t>(static_cast<double>(my_rows) * share);
  FitOptions fit_options = options.fit;
  fit_options.with_intercept = adapter.options().bias == AdapterBias::per_head;
  std::vector<LayerFit> fits(static_cast<size_t>(a.num_layers));
  FitRows mine;  // of the layer that is this rank's to fit
  int64_t my_layer = -1;
  const bool scaled = adapter.has_feature_scale();  // known to ranks without a sequence, too
  for (int64_t layer = 0; layer < a.num_layers; ++layer) {
    if (stop()) throw Interrupted("stopped during the warm start; nothing of it is kept");
    const LayerWeights weights = source.layer(layer);
    JoinedRows features(my_rows, a.hidden_size), scale(my_rows, a.num_kv_heads);
    JoinedRows importance(my_rows, a.num_kv_heads), weight(my_rows, 1);
    for (CalibrationSequence& sequence : sequences) {
      FitRows seen = observe_layer(a, weights, adapter, eviction, layer, rope, sequence, true);
      if (thin) seen = thinned(seen, layer, sequence.sample, pilot, share, fit_options);
      features.append(seen.features_ND);
      if (scaled) scale.append(seen.scale_NG);
      importance.append(seen.importance_NG);
      if (thin) weight.append(seen.weight_N.unsqueeze(1));
    }
    result.bytes = std::max(result.bytes, stream_bytes + features.bytes() + importance.bytes());
    const int64_t owner = layer % ranks.size();
    const auto to_owner = [&](JoinedRows joined) {  // which is gone afterwards
      if (ranks.size() == 1) return joined.rows();  // stays on its device
      return ranks.gather_rows(joined.rows().to(at::kCPU), owner,
                               "the warm start's rows of layer " + std::to_string(layer));
    };
    FitRows rows{to_owner(std::move(features)), {}, to_owner(std::move(importance)), {}};
    if (scaled) rows.scale_NG = to_owner(std::move(scale));
    const at::Tensor weight_N1 = thin ? to_owner(std::move(weight)) : at::Tensor();
    if (owner == ranks.rank()) {
      if (thin) rows.weight_N = weight_N1.squeeze(1);
      mine = std::move(rows);
      my_layer = layer;
    }
    // Every rank has a layer, or there are no more: they fit side by side.
    if (owner + 1 == ranks.size() || layer + 1 == a.num_layers) {
      if (my_layer >= 0) fits[static_cast<size_t>(my_layer)] = fit_layer(mine, result.threshold, fit_options);
      mine = {};
      my_layer = -1;
    }
    progress(layer + 1, a.num_layers);
  }
  share_fits(fits, thin, ranks);

  // Evict the share 1 - 1/CR with the lowest keep scores: logit = cut - score.
  const double evicted = 1.0 - 1.0 / options.compression;
  std::vector<at::Tensor> score_NG, weight_NG;
  for (const LayerFit& fit : fits) {
    score_NG.push_back(fit.score_NG);
    if (thin) weight_NG.push_back(fit.weight_N.unsqueeze(1).expand_as(fit.score_NG));
  }
  const double cut = thin ? order_statistic(at::cat(score_NG), at::cat(weight_NG), evicted)
                          : order_statistic(at::cat(score_NG), evicted);
  if (adapter.options().bias == AdapterBias::none) adapter.set_alpha_offset(-cut);
  for (int64_t layer = 0; layer < a.num_layers; ++layer) {
    const size_t i = static_cast<size_t>(layer);
    adapter.set_logit_function(layer, -fits[i].keep.weight_GD, cut - fits[i].keep.intercept_G);
    const at::Tensor gone_NG = (score_NG[i] < cut).to(at::kFloat);
    result.layer_eviction_rate.push_back(thin ? (at::sum(gone_NG * weight_NG[i]) / at::sum(weight_NG[i])).item<double>()
                                              : at::mean(gone_NG).item<double>());
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

}  // namespace dms
