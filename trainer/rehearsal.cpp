#include "trainer/rehearsal.h"

#include <ATen/core/grad_mode.h>
#include <tuple>
#include <utility>

#include "checkpoints/model_dir.h"
#include "trainer/ranks_forwarding.h"
#include "trainer/sample_tree.h"
#include "trainer/sharded_weights.h"

namespace dms {

namespace {

// A group in name only that counts what would have travelled.
class CountingRanks : public ForwardingRanks {
 public:
  explicit CountingRanks(int64_t size) : ForwardingRanks(pretended_ranks(size)) {}
  std::unique_ptr<Pending> start_all_gather(const at::Tensor& out, const at::Tensor& mine,
                                            const std::string& what) override {
    ++messages_;
    bytes_ += static_cast<int64_t>(out.nbytes() - mine.nbytes());
    return ForwardingRanks::start_all_gather(out, mine, what);
  }

  // Since the last call.
  std::pair<int64_t, int64_t> take_counts() { return {std::exchange(messages_, 0), std::exchange(bytes_, 0)}; }

 private:
  int64_t messages_ = 0, bytes_ = 0;
};

// The way of trainer/step.cpp through the weights.
void visit_weights(WeightSource& source) {
  const int64_t num_layers = source.architecture().num_layers, num_slices = source.num_vocabulary_slices();
  for (int64_t i = 0; i < num_slices; ++i) source.embedding_slice(i);
  for (int64_t layer = 0; layer < num_layers; ++layer) source.layer(layer);
  for (int64_t i = 0; i < num_slices; ++i) source.head_slice(i);
  for (int64_t i = num_slices - 1; i >= 0; --i) source.head_slice(i);
  for (int64_t layer = num_layers - 1; layer >= 0; --layer) source.layer(layer);
}

std::vector<std::vector<BorrowedChannel>> any_channels(const Recipe& recipe, const Architecture& a) {
  if (recipe.adapter.kind != AdapterKind::neuron) return {};
  std::vector<BorrowedChannel> of_layer;
  for (int64_t g = 0; g < a.num_kv_heads; ++g) of_layer.push_back({g * a.group_size(), 0});
  return std::vector<std::vector<BorrowedChannel>>(static_cast<size_t>(a.num_layers), of_layer);
}

}  // namespace

Rehearsal rehearse_step(const Recipe& recipe, int64_t num_ranks) {
  const at::NoGradGuard no_grad;
  CountingRanks ranks(num_ranks);
  Rehearsal rehearsal;
  for (int64_t r = 0; r < num_ranks; ++r) {
    const auto [begin, end] = share_of_rank(recipe.trainer.global_batch, r, num_ranks);
    rehearsal.sequences_of_rank.push_back(end - begin);
  }

  std::unique_ptr<WeightSource> source = open_weights(recipe.model_path, scalar_type(recipe.trainer.dtype),
                                                      {.keep = recipe.trainer.placement == Placement::replicate});
  if (recipe.trainer.placement == Placement::shard) source = std::make_unique<ShardedWeights>(std::move(source), ranks);
  const auto adapter =
      make_adapter(recipe.eviction, recipe.adapter, *source, any_channels(recipe, source->architecture()));
  visit_weights(*source);  // to where a step begins
  ranks.take_counts();
  visit_weights(*source);
  std::tie(rehearsal.weight_messages, rehearsal.weight_bytes) = ranks.take_counts();

  const SampleTree tree(rehearsal.sequences_of_rank, 0);
  std::vector<std::vector<at::Tensor>> sums;
  for (const Adapter::Parameter& parameter : adapter->parameters()) {
    const std::vector<at::Tensor> per_sample(static_cast<size_t>(rehearsal.sequences_of_rank.front()),
                                             at::zeros_like(parameter.tensor));
    sums.push_back(tree.subtree_sums(per_sample));
  }
  tree.sum_over_ranks(sums, ranks, "the gradients");
  std::tie(rehearsal.gradient_messages, rehearsal.gradient_bytes) = ranks.take_counts();
  return rehearsal;
}

}  // namespace dms
