#include "trainer/step.h"

#include <torch/csrc/autograd/autograd.h>

#include "model/noise.h"
#include "trainer/ordered_sum.h"

namespace dms {

namespace {

// Keys over which the compression loss counts, and the count itself.
struct CountedKeys {
  at::Tensor weight_T;  // 1 = counted
  int64_t per_head = 0;
};

CountedKeys keys_of_the_loss(const StepOptions& options, int64_t num_tokens, const DocumentOffsets& documents) {
  if (options.compression.count == CompressionCount::straight_through) {
    return {at::ones({num_tokens}, at::kFloat), num_tokens};
  }
  return {counted_keys_T(num_tokens, options.eviction.window, documents),
          num_counted_keys(options.eviction.window, documents)};
}

// The probabilities that the compression loss counts, differentiable.
const at::Tensor& counted_alpha(const StepOptions& options, const Relaxation& relaxation) {
  return options.compression.count == CompressionCount::straight_through ? relaxation.token_alpha_GT
                                                                         : relaxation.alpha_GT;
}

double counted_fraction_sum(const StepOptions& options, const Relaxation& relaxation, const at::Tensor& weight_T) {
  const at::Tensor alpha_GT = counted_alpha(options, relaxation).detach();
  if (options.compression.count == CompressionCount::straight_through) {
    return ordered_sum(alpha_GT > 0.5);
  }
  return ordered_sum(alpha_GT * weight_T);
}

// One sample on its way through the step.
struct SampleState {
  DocumentOffsets documents;
  CountedKeys counted;                         // what the compression loss counts
  at::Tensor far_keys_T;                       // keys with at least one far query: what the reported measures count
  at::Tensor teacher_TD;                       // the teacher's residual stream
  at::Tensor student_TD;                       // the student's, after the current layer
  std::vector<at::Tensor> layer_input_TD;      // per layer, leaves of that layer's graph
  std::vector<StudentLayerOutput> kept_graph;  // per layer, with ActivationCheckpointing::none
  at::Tensor gradient_TD;                      // of the loss, with respect to student_TD
};

class TrainingStep {
 public:
  TrainingStep(WeightSource& source, const Adapter& adapter, const StepOptions& options, const RopeTables& rope,
               int64_t step, int64_t first_sample)
      : source_(source),
        architecture_(source.architecture()),
        adapter_(adapter),
        options_(options),
        rope_(rope),
        step_(step),
        first_sample_(first_sample) {}

  StepResult run(const std::vector<Sample>& batch) {
    begin(batch);
    for (int64_t layer = 0; layer < architecture_.num_layers; ++layer) forward_layer(layer);

    StepResult result;
    result.target_cr = compression_ratio_at(options_.compression, step_);
    const double fraction = tree_sum(fraction_sums_) / static_cast<double>(num_fraction_);
    const CompressionLoss compression =
        compression_loss(options_.compression, target_fraction(result.target_cr), fraction);
    result.compression_loss = compression.loss;
    const double num_far = static_cast<double>(std::max<int64_t>(1, num_far_));
    result.alpha_mean = tree_sum(alpha_sums_) / num_far;
    result.eviction_rate = tree_sum(evicted_sums_) / num_far;

    result.kl = distill_batch(batch);
    result.loss = result.kl + result.compression_loss;

    const double alpha_gradient = compression.gradient / static_cast<double>(num_fraction_);
    std::vector<std::vector<at::Tensor>> layer_gradients(static_cast<size_t>(architecture_.num_layers));
    for (int64_t layer = architecture_.num_layers - 1; layer >= 0; --layer) {
      layer_gradients[static_cast<size_t>(layer)] = backward_layer(layer, alpha_gradient);
    }
    for (const auto& gradients : layer_gradients) {
      result.gradients.insert(result.gradients.end(), gradients.begin(), gradients.end());
    }
    return result;
  }

 private:
  void begin(const std::vector<Sample>& batch) {
    for (const Sample& sample : batch) {
      const int64_t num_tokens = static_cast<int64_t>(sample.tokens.size());
      SampleState state;
      state.documents = options_.attend_across_documents ? DocumentOffsets{0, num_tokens} : sample.document_offsets;
      state.counted = keys_of_the_loss(options_, num_tokens, state.documents);
      state.far_keys_T = counted_keys_T(num_tokens, options_.eviction.window, state.documents);
      state.teacher_TD = embed_tokens(source_, sample.tokens);
      state.student_TD = state.teacher_TD;
      const int64_t heads = architecture_.num_layers * architecture_.num_kv_heads;
      num_fraction_ += heads * state.counted.per_head;
      num_far_ += heads * num_counted_keys(options_.eviction.window, state.documents);
      samples_.push_back(std::move(state));
    }
    // A batch of documents that all fit into the window counts no key: nothing to compress, nothing to divide by.
    num_fraction_ = std::max<int64_t>(1, num_fraction_);
    fraction_sums_.assign(samples_.size(), 0.0);
    alpha_sums_.assign(samples_.size(), 0.0);
    evicted_sums_.assign(samples_.size(), 0.0);
  }

  at::Tensor noise_GT(int64_t layer, size_t sample, int64_t num_tokens) const {
    return logistic_noise_GT(options_.seed, step_, first_sample_ + static_cast<int64_t>(sample), layer,
                             architecture_.num_kv_heads, num_tokens);
  }

  StudentLayerOutput run_student(int64_t layer, const LayerWeights& weights, size_t sample) const {
    const SampleState& state = samples_[sample];
    const at::Tensor& x_TD = state.layer_input_TD[static_cast<size_t>(layer)];
    return student_layer(architecture_, weights, adapter_, options_.eviction, layer, x_TD,
                         noise_GT(layer, sample, x_TD.size(0)).to(x_TD.device()), {rope_, state.documents});
  }

  void forward_layer(int64_t layer) {
    const LayerWeights weights = source_.layer(layer);
    const bool keep_graph = options_.checkpointing == ActivationCheckpointing::none;
    for (size_t s = 0; s < samples_.size(); ++s) {
      SampleState& state = samples_[s];
      state.teacher_TD = teacher_layer(architecture_, weights, state.teacher_TD, {rope_, state.documents});

      // Nothing below layer 0 is trained, so its input needs no gradient.
      state.layer_input_TD.push_back(state.student_TD.detach().set_requires_grad(layer > 0));
      const at::AutoGradMode grad_mode(keep_graph);
      StudentLayerOutput output = run_student(layer, weights, s);
      state.student_TD = output.x_TD.detach();
      fraction_sums_[s] += counted_fraction_sum(options_, output.relaxation, state.counted.weight_T);
      alpha_sums_[s] += ordered_sum(output.relaxation.alpha_GT * state.far_keys_T);
      evicted_sums_[s] +=
          ordered_sum((decisions_GT(output.logit_GT.detach(), options_.eviction.decision_shift, state.documents) > 0) *
                      state.far_keys_T);
      if (keep_graph) state.kept_graph.push_back(std::move(output));
    }
  }

  // Returns the KL per counted token and leaves each sample's gradient_TD at the last layer's output.
  double distill_batch(const std::vector<Sample>& batch) {
    const HeadWeights head{source_.final_norm(), source_.head(), architecture_.rms_norm_eps};
    int64_t num_positions = 0;
    for (const Sample& sample : batch) {
      num_positions += std::count(sample.loss_mask.begin(), sample.loss_mask.end(), uint8_t{1});
    }
    num_positions = std::max<int64_t>(1, num_positions);
    std::vector<double> kl_sums;
    for (size_t s = 0; s < batch.size(); ++s) {
      DistillationResult sample = distill(head, samples_[s].teacher_TD, samples_[s].student_TD, batch[s].loss_mask,
                                          options_.distillation, 1.0 / static_cast<double>(num_positions));
      kl_sums.push_back(sample.kl_sum);
      samples_[s].gradient_TD = std::move(sample.dstudent_TD);
      samples_[s].teacher_TD.reset();
    }
    return tree_sum(kl_sums) / static_cast<double>(num_positions);
  }

  // Gradients of the layer's adapter parameters over the whole batch; moves every gradient_TD one layer down.
  std::vector<at::Tensor> backward_layer(int64_t layer, double alpha_gradient) {
    const LayerWeights weights = source_.layer(layer);
    const std::vector<Adapter::Parameter> parameters = adapter_.layer_parameters(layer);
    std::vector<std::vector<at::Tensor>> per_sample(parameters.size());
    for (size_t s = 0; s < samples_.size(); ++s) {
      SampleState& state = samples_[s];
      StudentLayerOutput output;
      if (options_.checkpointing == ActivationCheckpointing::none) {
        output = std::move(state.kept_graph.back());
        state.kept_graph.pop_back();
      } else {
        const at::AutoGradMode with_grad(true);
        output = run_student(layer, weights, s);
      }
      const at::Tensor alpha_GT = counted_alpha(options_, output.relaxation);
      const at::Tensor dalpha_GT = (alpha_gradient * state.counted.weight_T).expand_as(alpha_GT);

      std::vector<at::Tensor> inputs;
      for (const Adapter::Parameter& parameter : parameters) inputs.push_back(parameter.tensor);
      if (layer > 0) inputs.push_back(state.layer_input_TD.back());
      const std::vector<at::Tensor> gradients =
          torch::autograd::grad({output.x_TD, alpha_GT}, inputs, {state.gradient_TD, dalpha_GT.to(alpha_GT.device())});
      for (size_t p = 0; p < parameters.size(); ++p) per_sample[p].push_back(gradients[p]);
      if (layer > 0) state.gradient_TD = gradients.back();
      state.layer_input_TD.pop_back();
    }
    std::vector<at::Tensor> combined;
    for (auto& gradients : per_sample) combined.push_back(tree_sum(std::move(gradients)));
    return combined;
  }

  WeightSource& source_;
  const Architecture architecture_;
  const Adapter& adapter_;
  const StepOptions& options_;
  const RopeTables& rope_;
  const int64_t step_, first_sample_;

  std::vector<SampleState> samples_;
  std::vector<double> fraction_sums_, alpha_sums_, evicted_sums_;  // per sample, over layers and heads
  int64_t num_fraction_ = 0, num_far_ = 0;                         // over the global batch, layers and heads
};

}  // namespace

StepResult training_step(WeightSource& source, const Adapter& adapter, const StepOptions& options,
                         const RopeTables& rope, int64_t step, int64_t first_sample, const std::vector<Sample>& batch) {
  return TrainingStep(source, adapter, options, rope, step, first_sample).run(batch);
}

int64_t kept_graph_bytes(const Architecture& a, int64_t num_tokens, int64_t element_bytes) {
  // Saved by autograd per token and layer: residual-sized tensors (norm inputs, normalised values and their float32
  // twins, layer input), q/k/v before and after RoPE with rotated copies, attention output, and four MLP activations.
  const int64_t residual = 8 * a.hidden_size;
  const int64_t attention = 6 * (a.num_heads + a.num_kv_heads) * a.head_dim;
  const int64_t mlp = 4 * a.intermediate_size;
  return a.num_layers * num_tokens * (residual + attention + mlp) * element_bytes;
}

}  // namespace dms
