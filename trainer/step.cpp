#include "trainer/step.h"

#include "model/noise.h"
#include "trainer/ordered_sum.h"
#include "trainer/sample_tree.h"

namespace dms {

namespace {

// Keys over which the compression loss counts, and the count itself.
struct CountedKeys {
  at::Tensor weight_T;  // 1 = counted
  int64_t per_head = 0;
};

CountedKeys keys_of_the_loss(const StepOptions& options, int64_t num_tokens, const DocumentOffsets& documents,
                             at::Device device) {
  if (options.compression.count == CompressionCount::straight_through) {
    return {at::ones({num_tokens}, at::TensorOptions(device).dtype(at::kFloat)), num_tokens};
  }
  return {counted_keys_T(num_tokens, options.eviction.window, documents).to(device),
          num_counted_keys(options.eviction.window, documents)};
}

double counted_fraction_sum(const StepOptions& options, const Relaxation& relaxation, const at::Tensor& weight_T) {
  if (options.compression.count == CompressionCount::straight_through) {
    return ordered_sum(relaxation.token_alpha_GT.detach() > 0.5);
  }
  return ordered_sum(relaxation.alpha_GT.detach() * weight_T);
}

// One sample on its way through the step.
struct SampleState {
  DocumentOffsets documents;
  StudentRows rows;                  // where the student can differ from the teacher
  CountedKeys counted;               // what the compression loss counts
  at::Tensor far_keys_T;             // keys with at least one far query: what the reported measures count
  at::Tensor teacher_TD;             // the teacher's residual stream
  at::Tensor student_TD;             // the student's, after the current layer
  std::vector<StudentLayer> layers;  // forward done, backward to come
  at::Tensor gradient_FD;            // of the loss, with respect to the student's rows of its residual stream
};

class TrainingStep {
 public:
  TrainingStep(WeightSource& source, const Adapter& adapter, const StepOptions& options, const RopeTables& rope,
               int64_t step, const SampleTree& tree, int64_t first_sample, RankGroup& ranks)
      : source_(source),
        architecture_(source.architecture()),
        adapter_(adapter),
        options_(options),
        rope_(rope),
        step_(step),
        tree_(tree),
        first_sample_(first_sample + tree.first_sample()),
        ranks_(ranks) {}

  // What the ranks tell each other is waited for where it is used: a rank that is behind by less than the head takes, or
  // than the backward pass, holds nobody up.
  StepResult run(const std::vector<Sample>& batch) {
    RankGroup::Gathering sizes = begin(batch);
    for (int64_t layer = 0; layer < architecture_.num_layers; ++layer) forward_layer(layer);
    SampleTree::Sums rates =
        tree_.start_sums({fraction_sums_, alpha_sums_, evicted_sums_}, ranks_, "the other samples' eviction rates");
    count_over_ranks(sizes.wait());
    SampleTree::Sums kl = tree_.start_sums({distill_batch(batch)}, ranks_, "the other samples' losses");

    StepResult result;
    result.target_cr = compression_ratio_at(options_.compression, step_);
    const std::vector<double> rate_sums = rates.wait();
    const double fraction = rate_sums[0] / static_cast<double>(num_fraction_);
    const CompressionLoss compression =
        compression_loss(options_.compression, target_fraction(result.target_cr), fraction);
    result.compression_loss = compression.loss;
    const double num_far = static_cast<double>(std::max<int64_t>(1, num_far_));
    result.alpha_mean = rate_sums[1] / num_far;
    result.eviction_rate = rate_sums[2] / num_far;

    const double alpha_gradient = compression.gradient / static_cast<double>(num_fraction_);
    std::vector<std::vector<at::Tensor>> gradients;  // per parameter, the sums of this rank's subtrees
    for (int64_t layer = architecture_.num_layers - 1; layer >= 0; --layer) {
      std::vector<std::vector<at::Tensor>> of_layer = backward_layer(layer, alpha_gradient);
      gradients.insert(gradients.begin(), of_layer.begin(), of_layer.end());
    }
    result.gradients = tree_.sum_over_ranks(gradients, ranks_, "the adapters' gradients");
    result.kl = kl.wait()[0] / static_cast<double>(num_positions_);
    result.loss = result.kl + result.compression_loss;
    return result;
  }

 private:
  // Returns every rank's sizes of its share of the batch.
  RankGroup::Gathering begin(const std::vector<Sample>& batch) {
    std::vector<std::vector<int32_t>> tokens;
    for (const Sample& sample : batch) tokens.push_back(sample.tokens);
    std::vector<at::Tensor> embedded = embed_sequences(source_, tokens);
    for (size_t s = 0; s < batch.size(); ++s) {
      const Sample& sample = batch[s];
      const int64_t num_tokens = static_cast<int64_t>(sample.tokens.size());
      const int64_t window = options_.eviction.window;
      const DocumentOffsets documents =
          options_.attend_across_documents ? DocumentOffsets{0, num_tokens} : sample.document_offsets;
      const at::Tensor embedded_TD = std::move(embedded[s]);
      samples_.push_back({.documents = documents,
                          .rows = StudentRows(adapter_, window, documents),
                          .counted = keys_of_the_loss(options_, num_tokens, documents, embedded_TD.device()),
                          .far_keys_T = counted_keys_T(num_tokens, window, documents).to(embedded_TD.device()),
                          .teacher_TD = embedded_TD,
                          .student_TD = embedded_TD,
                          .layers = {},
                          .gradient_FD = {}});
      const int64_t heads = architecture_.num_layers * architecture_.num_kv_heads;
      num_fraction_ += heads * samples_.back().counted.per_head;
      num_far_ += heads * num_counted_keys(window, documents);
    }
    for (const Sample& sample : batch) {
      num_positions_ += std::count(sample.loss_mask.begin(), sample.loss_mask.end(), uint8_t{1});
    }
    fraction_sums_.assign(samples_.size(), 0.0);
    alpha_sums_.assign(samples_.size(), 0.0);
    evicted_sums_.assign(samples_.size(), 0.0);
    return ranks_.start_all_gather(at::tensor({num_fraction_, num_far_, num_positions_}, at::kLong),
                                   "the batch's sizes");
  }

  void count_over_ranks(const at::Tensor& sizes_R3) {
    const at::Tensor sizes = sizes_R3.sum(0);
    // A batch of documents that all fit into the window counts no key: nothing to compress, nothing to divide by.
    num_fraction_ = std::max<int64_t>(1, sizes[0].item<int64_t>());
    num_far_ = sizes[1].item<int64_t>();
    num_positions_ = std::max<int64_t>(1, sizes[2].item<int64_t>());
  }

  // The same whenever it is asked for, so that recomputation sees the same noise.
  at::Tensor noise_GT(int64_t layer, size_t sample) const {
    const SampleState& state = samples_[sample];
    return logistic_noise_GT(options_.seed, step_, first_sample_ + static_cast<int64_t>(sample), layer,
                             architecture_.num_kv_heads, state.documents.back())
        .to(rope_.cos_Td.device());
  }

  void forward_layer(int64_t layer) {
    const LayerWeights weights = source_.layer(layer);
    for (size_t s = 0; s < samples_.size(); ++s) {
      SampleState& state = samples_[s];
      const SequenceContext sequence{rope_, state.documents};
      state.teacher_TD = teacher_layer(architecture_, weights, state.teacher_TD, sequence);

      StudentLayer& student =
          state.layers.emplace_back(architecture_, adapter_, options_.eviction, state.rows, layer, state.student_TD);
      const StudentLayer::Output output =
          student.forward(weights, sequence, noise_GT(layer, s), options_.checkpointing);
      state.student_TD = state.rows.replace(state.teacher_TD, output.x_FD);
      fraction_sums_[s] += counted_fraction_sum(options_, output.relaxation, state.counted.weight_T);
      alpha_sums_[s] += ordered_sum(output.relaxation.alpha_GT.detach() * state.far_keys_T);
      evicted_sums_[s] += ordered_sum(
          (decisions_GT(output.logit_GT, options_.eviction.decision_shift, state.documents) > 0) * state.far_keys_T);
    }
  }

  // Returns each sample's sum of KL and leaves its gradient_FD at the last layer's output.  Outside the student's rows the
  // two models are one: no KL, no gradient.
  std::vector<double> distill_batch(const std::vector<Sample>& batch) {
    std::vector<DistillationSample> of_samples;
    for (size_t s = 0; s < batch.size(); ++s) {
      SampleState& state = samples_[s];
      of_samples.push_back({state.rows.take(state.teacher_TD), state.rows.take(state.student_TD), {}});
      for (const auto& [begin, end] : state.rows.ranges()) {
        std::vector<uint8_t>& row_mask = of_samples.back().loss_mask;
        row_mask.insert(row_mask.end(), batch[s].loss_mask.begin() + begin, batch[s].loss_mask.begin() + end);
      }
      state.teacher_TD.reset();
      state.student_TD.reset();
    }
    std::vector<double> kl_sums;
    std::vector<DistillationResult> results =
        distill(source_, std::move(of_samples), options_.distillation, 1.0 / static_cast<double>(num_positions_));
    for (size_t s = 0; s < batch.size(); ++s) {
      kl_sums.push_back(results[s].kl_sum);
      samples_[s].gradient_FD = std::move(results[s].dstudent_TD);
    }
    return kl_sums;
  }

  // Gradients of the layer's adapter parameters, each as the sums of this rank's subtrees; moves every gradient_FD one
  // layer down.
  std::vector<std::vector<at::Tensor>> backward_layer(int64_t layer, double alpha_gradient) {
    const LayerWeights weights = source_.layer(layer);
    const bool of_token_alpha = options_.compression.count == CompressionCount::straight_through;
    std::vector<std::vector<at::Tensor>> per_sample(adapter_.layer_parameters(layer).size());
    for (size_t s = 0; s < samples_.size(); ++s) {
      SampleState& state = samples_[s];
      const at::Tensor dalpha_GT = (alpha_gradient * state.counted.weight_T).expand({architecture_.num_kv_heads, -1});
      StudentLayer::Gradients gradients = state.layers.back().backward(
          weights, {rope_, state.documents}, noise_GT(layer, s), state.gradient_FD, dalpha_GT, of_token_alpha);
      state.layers.pop_back();
      state.gradient_FD = std::move(gradients.dx_FD);
      for (size_t p = 0; p < per_sample.size(); ++p) per_sample[p].push_back(std::move(gradients.parameters[p]));
    }
    std::vector<std::vector<at::Tensor>> combined;
    for (auto& gradients : per_sample) combined.push_back(tree_.subtree_sums(std::move(gradients)));
    return combined;
  }

  WeightSource& source_;
  const Architecture architecture_;
  const Adapter& adapter_;
  const StepOptions& options_;
  const RopeTables& rope_;
  const int64_t step_;
  const SampleTree& tree_;
  const int64_t first_sample_;  // of this rank, in the run
  RankGroup& ranks_;

  std::vector<SampleState> samples_;
  std::vector<double> fraction_sums_, alpha_sums_, evicted_sums_;  // per sample, over layers and heads
  // Of this rank's samples and, after count_over_ranks(), of the global batch:
  int64_t num_fraction_ = 0, num_far_ = 0;  // over layers and heads
  int64_t num_positions_ = 0;               // that the KL counts
};

}  // namespace

StepResult training_step(WeightSource& source, const Adapter& adapter, const StepOptions& options,
                         const RopeTables& rope, int64_t step, int64_t first_sample, const std::vector<Sample>& batch,
                         RankGroup& ranks) {
  const SampleTree tree(ranks.all_gather(static_cast<int64_t>(batch.size()), "the shares of the batch"), ranks.rank());
  return TrainingStep(source, adapter, options, rope, step, tree, first_sample, ranks).run(batch);
}

}  // namespace dms
