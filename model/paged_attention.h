// Attention of the newest token of many sequences over rows that lie in a pool's pages, for devices that a loop over
// heads would keep waiting: one call for all pages of a slab, each page with the queries of its head, and the parts
// merged by log-sum-exp.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "model/head_cache.h"

namespace dms {

// Spans of the rows of one tensor of keys and one of values: span i is rows first_rows[i], ... of both, num_rows[i] >= 1
// of them.
struct PageSpans {
  at::Tensor keys_Md, values_Md;
  std::vector<int32_t> first_rows, num_rows;
};

struct PageOutput {
  at::Tensor out_SRd;
  at::Tensor lse_SR;  // float32 (float64 for float64 inputs)
};

// Unmasked attention of queries q_SRd[i] over span i, of q's dtype.
class PageKernel {
 public:
  virtual ~PageKernel() = default;
  virtual PageOutput attend(const at::Tensor& q_SRd, const PageSpans& spans, double scale) const = 0;
};

// The kernel for such queries: the device's flash attention where it takes them (attention_cuda.cpp), else dense products
// span by span.
const PageKernel& page_kernel(const at::Tensor& q_NRd);

// softmax(scale q K^T) V of the R query heads of each of N KV heads, which are of the same pool.  q_NRd [N, R, d]; returns
// the same shape.  Rows stored in another dtype than q's are copied and widened first.
at::Tensor paged_attention(const PageKernel& kernel, const KvPool& pool, const std::vector<const HeadCache*>& heads,
                           const at::Tensor& q_NRd, double scale);

}  // namespace dms
