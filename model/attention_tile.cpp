#include "model/attention_tile.h"

namespace dms {

#define DMS_DECLARE_TILE(instructions)                                                                                 \
  namespace instructions {                                                                                             \
  template <class Real>                                                                                                \
  void softmax_tile(const AttentionTile& tile, const Real* bias, Real* score, Real* row_max, Real* row_sum, Real* out, \
                    int64_t head_dim);                                                                                 \
  template <class Real>                                                                                                \
  void gradient_tile(const AttentionTile& tile, const Real* bias, const Real* logsumexp, const Real* delta,            \
                     Real* score, Real* dprobability, Real* dbias);                                                    \
  }
DMS_DECLARE_TILE(baseline)
#ifdef DMS_X86_INSTRUCTIONS
DMS_DECLARE_TILE(avx2)
#endif

namespace {

#ifdef DMS_X86_INSTRUCTIONS
bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has;
}
#endif

}  // namespace

template <class Real>
void softmax_tile(const AttentionTile& tile, const Real* bias, Real* score, Real* row_max, Real* row_sum, Real* out,
                  int64_t head_dim) {
#ifdef DMS_X86_INSTRUCTIONS
  if (has_avx2()) return avx2::softmax_tile(tile, bias, score, row_max, row_sum, out, head_dim);
#endif
  baseline::softmax_tile(tile, bias, score, row_max, row_sum, out, head_dim);
}

template <class Real>
void gradient_tile(const AttentionTile& tile, const Real* bias, const Real* logsumexp, const Real* delta, Real* score,
                   Real* dprobability, Real* dbias) {
#ifdef DMS_X86_INSTRUCTIONS
  if (has_avx2()) return avx2::gradient_tile(tile, bias, logsumexp, delta, score, dprobability, dbias);
#endif
  baseline::gradient_tile(tile, bias, logsumexp, delta, score, dprobability, dbias);
}

template void softmax_tile(const AttentionTile&, const float*, float*, float*, float*, float*, int64_t);
template void softmax_tile(const AttentionTile&, const double*, double*, double*, double*, double*, int64_t);
template void gradient_tile(const AttentionTile&, const float*, const float*, const float*, float*, float*, float*);
template void gradient_tile(const AttentionTile&, const double*, const double*, const double*, double*, double*,
                            double*);

}  // namespace dms
