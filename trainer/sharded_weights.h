// Where the frozen weights are kept, and the weight source that spreads them over ranks.
//   replicate  every rank sees all of them (on one host, through one mapping of the files)
//   shard      each rank keeps 1/N of every layer; a layer is all-gathered while the one before it computes
//   host       they stay in the files' mapping and pass by layer by layer
// Nothing frozen has a gradient, so nothing is ever scattered back.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/weights.h"
#include "trainer/ranks.h"

namespace dms {

enum class Placement { automatic, replicate, shard, host };
const char* name_of(Placement placement);

// Slices of the embedding, layers and slices of the head are the stations of a walk: a step goes up it, down to the first
// layer, and the next one begins with the embedding again.  The station that comes next on it is gathered in advance.
// No slice is larger than a layer (or kVocabularyTile rows), and at most two stations are whole at a time, as long as
// the caller keeps no older one.  Asking for a station is collective: all ranks do it in the same order.
class ShardedWeights : public WeightSource {
 public:
  // Copies this rank's part out of `whole`, one station at a time, and lets go of it.
  ShardedWeights(std::unique_ptr<WeightSource> whole, RankGroup& ranks);
  ~ShardedWeights() override;

  const Architecture& architecture() const override { return architecture_; }
  at::ScalarType dtype() const override { return dtype_; }
  LayerWeights layer(int64_t index) override;
  // Put together from slices, for those who need them whole; a step does not.
  at::Tensor embedding() override;
  at::Tensor final_norm() override { return final_norm_; }
  at::Tensor head() override;
  int64_t num_vocabulary_slices() const override;
  VocabularySlice embedding_slice(int64_t index) override;
  VocabularySlice head_slice(int64_t index) override;

 private:
  struct Slot {
    std::vector<int64_t> shape;  // empty: the family has no such tensor
    int64_t begin = 0;           // elements, in the station's flat buffer
  };
  struct Station {
    std::vector<Slot> slots;
    int64_t numel = 0;  // a multiple of the number of ranks
    at::Tensor shard;   // this rank's part of the flat buffer
  };
  struct Gathered {
    int64_t station = -1;
    at::Tensor flat;
    std::unique_ptr<RankGroup::Pending> pending;  // null when complete
  };

  Station shard_of(const std::vector<at::Tensor>& tensors) const;
  void add_slices(const at::Tensor& weight_VD);
  int64_t first_layer() const { return num_vocabulary_slices(); }
  int64_t first_head_slice() const { return first_layer() + architecture_.num_layers; }
  int64_t last_station() const { return first_head_slice() + num_vocabulary_slices() - 1; }
  // Of the walk, after the move from `before` to `station`.
  int64_t station_after(int64_t before, int64_t station) const;
  std::vector<at::Tensor> visit(int64_t station);
  const Station& stored(int64_t station) const;
  at::Tensor buffer(int64_t numel);
  Gathered start_gather(int64_t station);

  RankGroup& ranks_;
  const Architecture architecture_;
  const at::ScalarType dtype_;
  const int64_t slice_rows_;
  std::vector<Station> stations_;  // embedding, layers, head (absent when tied)
  at::Tensor final_norm_;
  Gathered current_, next_;
  std::vector<at::Tensor> buffers_;  // kept for reuse: fresh pages cost as much as the copy into them
};

}  // namespace dms
