#include "model/paged_attention.h"

#include <algorithm>
#include <limits>
#include <map>

#include "model/pinned.h"

namespace dms {

const PageKernel* cuda_page_kernel(const at::Tensor& q_NRd);  // attention_cuda.cpp; null: it does not take them

namespace {

class DensePageKernel final : public PageKernel {
 public:
  PageOutput attend(const at::Tensor& q_SRd, const PageSpans& spans, double scale) const override {
    std::vector<at::Tensor> outs, lses;
    for (size_t i = 0; i < spans.first_rows.size(); ++i) {
      const auto span = [&](const at::Tensor& x_Md) { return x_Md.narrow(0, spans.first_rows[i], spans.num_rows[i]); };
      const at::Tensor score_Rn =
          (at::matmul(q_SRd[static_cast<int64_t>(i)], span(spans.keys_Md).t()) * scale).to(accumulated_in(q_SRd));
      outs.push_back(at::matmul(at::softmax(score_Rn, -1).to(q_SRd.scalar_type()), span(spans.values_Md)));
      lses.push_back(at::logsumexp(score_Rn, -1));
    }
    return {at::stack(outs), at::stack(lses)};
  }

 private:
  static at::ScalarType accumulated_in(const at::Tensor& q) {
    return q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  }
};

// Spans of heads, and whose each is: span `part` of head `head`, in the order of the head's rows.
struct HeadSpans {
  PageSpans spans;
  std::vector<int64_t> head, part;
};

// Pages where they lie, slab by slab.  Where a slab lies, and so the order of slabs here, may differ from one process to the
// next.
std::vector<HeadSpans> spans_in_place(const KvPool& pool, const std::vector<const HeadCache*>& heads) {
  std::map<const KvSlab*, HeadSpans> by_slab;
  for (size_t h = 0; h < heads.size(); ++h) {
    int64_t left = heads[h]->num_live(), part = 0;
    for (const KvRow& page : heads[h]->pages()) {
      HeadSpans& of_slab = by_slab[page.slab];
      of_slab.head.push_back(static_cast<int64_t>(h));
      of_slab.part.push_back(part++);
      of_slab.spans.first_rows.push_back(static_cast<int32_t>(page.index));
      of_slab.spans.num_rows.push_back(static_cast<int32_t>(std::min(left, pool.page_rows())));
      left -= pool.page_rows();
    }
  }
  std::vector<HeadSpans> all;
  for (auto& [slab, of_slab] : by_slab) {
    // A page's values follow its keys.
    const at::Tensor& rows_Md = KvPool::rows_of(*slab);
    of_slab.spans.keys_Md = rows_Md.slice(0, 0, rows_Md.size(0) - pool.page_rows());
    of_slab.spans.values_Md = rows_Md.slice(0, pool.page_rows());
    all.push_back(std::move(of_slab));
  }
  return all;
}

// Copies in q's dtype, head after head.
HeadSpans widened_spans(const KvPool& pool, const std::vector<const HeadCache*>& heads, at::ScalarType dtype) {
  HeadSpans copied;
  std::vector<KvRow> places;
  for (size_t h = 0; h < heads.size(); ++h) {
    copied.head.push_back(static_cast<int64_t>(h));
    copied.part.push_back(0);
    copied.spans.first_rows.push_back(static_cast<int32_t>(places.size()));
    copied.spans.num_rows.push_back(static_cast<int32_t>(heads[h]->num_live()));
    const std::vector<KvRow> of_head = heads[h]->places();
    places.insert(places.end(), of_head.begin(), of_head.end());
  }
  copied.spans.keys_Md = from_stored(pool.read_keys(places), dtype);
  copied.spans.values_Md = from_stored(pool.read_values(places), dtype);
  return copied;
}

}  // namespace

const PageKernel& page_kernel(const at::Tensor& q_NRd) {
  static const DensePageKernel dense;
  const PageKernel* const flash = q_NRd.is_cuda() ? cuda_page_kernel(q_NRd) : nullptr;
  return flash != nullptr ? *flash : dense;
}

at::Tensor paged_attention(const PageKernel& kernel, const KvPool& pool, const std::vector<const HeadCache*>& heads,
                           const at::Tensor& q_NRd, double scale) {
  std::vector<HeadSpans> all;
  if (pool.stored_dtype() == q_NRd.scalar_type()) {
    all = spans_in_place(pool, heads);
  } else {
    all.push_back(widened_spans(pool, heads, q_NRd.scalar_type()));
  }

  std::vector<at::Tensor> outs, lses;
  std::vector<std::vector<int64_t>> spans_of(heads.size());
  int64_t num_spans = 0;
  for (const HeadSpans& call : all) {
    const PageOutput output =
        kernel.attend(q_NRd.index_select(0, to_device(call.head, q_NRd.device())), call.spans, scale);
    outs.push_back(output.out_SRd);
    lses.push_back(output.lse_SR);
    for (size_t i = 0; i < call.head.size(); ++i) {
      auto& spans = spans_of[static_cast<size_t>(call.head[i])];
      spans.resize(std::max(spans.size(), static_cast<size_t>(call.part[i]) + 1));
      spans[static_cast<size_t>(call.part[i])] = num_spans++;
    }
  }

  // [N, most spans of a head], added up in the order of a head's rows; where a head has fewer, one that adds nothing.
  size_t most = 0;
  for (const auto& spans : spans_of) most = std::max(most, spans.size());
  std::vector<int64_t> table;
  for (auto& spans : spans_of) {
    spans.resize(most, num_spans);
    table.insert(table.end(), spans.begin(), spans.end());
  }
  outs.push_back(at::zeros_like(outs.front().slice(0, 0, 1)));
  lses.push_back(at::full_like(lses.front().slice(0, 0, 1), -std::numeric_limits<double>::infinity()));
  const at::Tensor index = to_device(table, q_NRd.device());
  const auto by_head = [&](const std::vector<at::Tensor>& parts) {
    return at::cat(parts).index_select(0, index).unflatten(0, {q_NRd.size(0), static_cast<int64_t>(most)});
  };
  const at::Tensor lse_NSR = by_head(lses), out_NSRd = by_head(outs);
  const at::Tensor weight_NSR1 = at::softmax(lse_NSR, 1).unsqueeze(-1);
  return at::sum(weight_NSR1 * out_NSRd, 1).to(q_NRd.scalar_type());
}

}  // namespace dms
