#include "trainer/sharded_weights.h"

#include <algorithm>

namespace dms {

namespace {

// Views start where BLAS likes them to.
constexpr int64_t kAlignmentBytes = 64;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

std::vector<at::Tensor> tensors_of(const LayerWeights& weights) {
  std::vector<at::Tensor> tensors;
  for (const auto member : kLayerTensors) tensors.push_back(weights.*member);
  return tensors;
}

// As many as a layer has room for.
int64_t rows_of_a_slice(WeightSource& whole) {
  int64_t layer_numel = 0;
  for (const at::Tensor& tensor : tensors_of(whole.layer(0))) layer_numel += tensor.defined() ? tensor.numel() : 0;
  const int64_t rows = layer_numel / whole.architecture().hidden_size;
  return std::max(kVocabularyTile, rows / kVocabularyTile * kVocabularyTile);
}

// The whole of what comes in slices.
template <class Slice>
at::Tensor joined(ShardedWeights& weights, const Slice& slice) {
  const Architecture& a = weights.architecture();
  const at::Tensor whole_VD = at::empty({a.vocab_size, a.hidden_size}, weights.final_norm().options());
  for (int64_t i = 0; i < weights.num_vocabulary_slices(); ++i) {
    const auto [begin, rows_VD] = slice(i);
    whole_VD.slice(0, begin, begin + rows_VD.size(0)).copy_(rows_VD);
  }
  return whole_VD;
}

}  // namespace

const char* name_of(Placement placement) {
  switch (placement) {
    case Placement::replicate:
      return "replicate";
    case Placement::shard:
      return "shard";
    case Placement::host:
      return "host";
    case Placement::automatic:
      break;
  }
  return "auto";
}

ShardedWeights::ShardedWeights(std::unique_ptr<WeightSource> whole, RankGroup& ranks)
    : ranks_(ranks),
      architecture_(whole->architecture()),
      dtype_(whole->dtype()),
      slice_rows_(rows_of_a_slice(*whole)) {
  add_slices(whole->embedding());
  for (int64_t i = 0; i < architecture_.num_layers; ++i) stations_.push_back(shard_of(tensors_of(whole->layer(i))));
  if (!architecture_.tied_embeddings) add_slices(whole->head());
  final_norm_ = whole->final_norm().clone();
}

ShardedWeights::~ShardedWeights() {
  if (next_.pending == nullptr) return;
  try {
    next_.pending->wait();
  } catch (const RankLost&) {
    // Whoever waits for something that is needed says so.
  }
}

void ShardedWeights::add_slices(const at::Tensor& weight_VD) {
  for (int64_t i = 0; i < num_vocabulary_slices(); ++i) {
    const int64_t begin = i * slice_rows_, end = std::min(begin + slice_rows_, architecture_.vocab_size);
    stations_.push_back(shard_of({weight_VD.slice(0, begin, end)}));
  }
}

int64_t ShardedWeights::num_vocabulary_slices() const {
  return (architecture_.vocab_size + slice_rows_ - 1) / slice_rows_;
}

ShardedWeights::Station ShardedWeights::shard_of(const std::vector<at::Tensor>& tensors) const {
  const int64_t alignment = kAlignmentBytes / static_cast<int64_t>(c10::elementSize(dtype_));
  Station station;
  for (const at::Tensor& tensor : tensors) {
    Slot slot;
    if (tensor.defined()) {
      slot = {tensor.sizes().vec(), station.numel};
      station.numel = round_up(station.numel + tensor.numel(), alignment);
    }
    station.slots.push_back(slot);
  }
  station.numel = round_up(station.numel, ranks_.size() * alignment);

  const int64_t part = station.numel / ranks_.size(), begin = part * ranks_.rank();
  station.shard = at::zeros({part}, tensors.front().options());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].defined()) continue;
    // What of this tensor falls into [begin, begin + part).
    const int64_t from = std::max(begin, station.slots[i].begin);
    const int64_t to = std::min(begin + part, station.slots[i].begin + tensors[i].numel());
    if (from >= to) continue;
    station.shard.slice(0, from - begin, to - begin)
        .copy_(tensors[i].reshape({-1}).slice(0, from - station.slots[i].begin, to - station.slots[i].begin));
  }
  return station;
}

// A tied head is the embedding again, at the other end of the walk.
const ShardedWeights::Station& ShardedWeights::stored(int64_t station) const {
  const bool is_stored = station < static_cast<int64_t>(stations_.size());
  return stations_[static_cast<size_t>(is_stored ? station : station - first_head_slice())];
}

int64_t ShardedWeights::station_after(int64_t before, int64_t station) const {
  if (station < first_layer()) return station + 1;  // the embedding is only read upwards
  if (station < before) return station > first_layer() ? station - 1 : 0;
  return station < last_station() ? station + 1 : station - 1;
}

at::Tensor ShardedWeights::buffer(int64_t numel) {
  // Those that a caller still sees are his, and another size would only take room.
  std::erase_if(buffers_, [&](const at::Tensor& b) { return b.storage().use_count() > 1 || b.numel() != numel; });
  if (!buffers_.empty()) {
    at::Tensor reused = buffers_.back();
    buffers_.pop_back();
    return reused;
  }
  return at::empty({numel}, final_norm_.options());
}

ShardedWeights::Gathered ShardedWeights::start_gather(int64_t station) {
  const Station& source = stored(station);
  Gathered gathered{station, buffer(source.numel), nullptr};
  const std::string what = station < first_layer() ? "the embedding"
                           : station < first_head_slice()
                               ? "the weights of layer " + std::to_string(station - first_layer())
                               : "the head";
  gathered.pending = ranks_.start_all_gather(gathered.flat, source.shard, what);
  return gathered;
}

std::vector<at::Tensor> ShardedWeights::visit(int64_t station) {
  if (current_.station != station) {
    const int64_t before = current_.station;
    if (current_.flat.defined()) buffers_.push_back(std::move(current_.flat));
    current_ = {};
    if (next_.station != station) {  // not the way that was foreseen
      if (next_.pending != nullptr) next_.pending->wait();
      if (next_.flat.defined()) buffers_.push_back(std::move(next_.flat));
      next_ = {};
      next_ = start_gather(station);
    }
    next_.pending->wait();
    current_ = std::move(next_);
    current_.pending = nullptr;

    next_ = start_gather(station_after(before, station));
  }
  std::vector<at::Tensor> tensors;
  for (const Slot& slot : stored(station).slots) {
    if (slot.shape.empty()) {
      tensors.emplace_back();
      continue;
    }
    const int64_t numel = c10::multiply_integers(slot.shape);
    tensors.push_back(current_.flat.slice(0, slot.begin, slot.begin + numel).view(slot.shape));
  }
  return tensors;
}

LayerWeights ShardedWeights::layer(int64_t index) {
  const std::vector<at::Tensor> tensors = visit(first_layer() + index);
  LayerWeights weights;
  for (size_t i = 0; i < tensors.size(); ++i) weights.*kLayerTensors[i] = tensors[i];
  return weights;
}

VocabularySlice ShardedWeights::embedding_slice(int64_t index) { return {index * slice_rows_, visit(index).front()}; }
VocabularySlice ShardedWeights::head_slice(int64_t index) {
  return {index * slice_rows_, visit(first_head_slice() + index).front()};
}

at::Tensor ShardedWeights::embedding() {
  return joined(*this, [this](int64_t i) { return embedding_slice(i); });
}

at::Tensor ShardedWeights::head() {
  return joined(*this, [this](int64_t i) { return head_slice(i); });
}

}  // namespace dms
