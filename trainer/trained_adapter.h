// Between the live adapter and its file.
#pragma once

#include <memory>
#include <string>

#include "checkpoints/adapter_file.h"
#include "model/adapter.h"
#include "model/weights.h"
#include "trainer/recipe.h"

namespace dms {

// What the adapter file says beside tensors: where the adapter comes from.
struct AdapterOrigin {
  std::string base_model, base_sha256, recipe_sha256;
  int64_t step = 0;
};
AdapterFile to_adapter_file(const Adapter& adapter, const Recipe& recipe, const AdapterOrigin& origin);

// Throws UserError when the adapters of such a recipe could not be exported to one of its export_targets.
void require_exportable(const Recipe& recipe, const Architecture& architecture);

// An adapter read back, with the eviction rule it was trained for.
struct TrainedAdapter {
  AdapterFile file;
  EvictionOptions eviction;
  std::unique_ptr<Adapter> adapter;
};
// `dir` as in read_adapter_file.  Throws UserError.
TrainedAdapter load_trained_adapter(const std::string& dir, WeightSource& source,
                                    const std::string& expected_base_sha256);
// Gives an adapter without a bias per KV head one of zeros: it decides as before.
void give_bias_per_head(TrainedAdapter& trained, WeightSource& source);
// Takes what was changed in `adapter` over into the file and the rule beside it.
void take_over_changes(TrainedAdapter& trained);

}  // namespace dms
