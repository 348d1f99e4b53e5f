#include "model/kv_format.h"

#include <utility>

namespace dms {

namespace {

// The largest magnitude that an element can hold.
double largest_element(at::ScalarType stored) { return stored == at::kChar ? 127.0 : 448.0; }

const std::vector<std::pair<std::string, at::ScalarType>>& named_formats() {
  static const std::vector<std::pair<std::string, at::ScalarType>> formats{
      {"float32", at::kFloat}, {"bfloat16", at::kBFloat16}, {"int8", at::kChar}, {"fp8", at::kFloat8_e4m3fn}};
  return formats;
}

}  // namespace

bool is_quantised(at::ScalarType stored) { return stored == at::kChar || stored == at::kFloat8_e4m3fn; }

StoredRows to_stored(const at::Tensor& x, at::ScalarType stored) {
  if (!is_quantised(stored)) return {x.to(stored), {}};
  const at::Tensor x32 = x.to(at::kFloat);
  const double largest = largest_element(stored);
  // A row of zeros has no scale of its own.  The smallest scale is a normal number: 1 / scale must be finite.
  const at::Tensor scales = at::amax(at::abs(x32), {-1}).div_(largest).clamp_min_(1e-30);
  at::Tensor elements = (x32 / scales.unsqueeze(-1)).clamp_(-largest, largest);
  if (stored == at::kChar) elements.round_();
  return {elements.to(stored), scales};
}

at::Tensor from_stored(const StoredRows& stored, at::ScalarType dtype) {
  if (!stored.scales.defined()) return stored.rows.to(dtype);
  return (stored.rows.to(at::kFloat) * stored.scales.unsqueeze(-1)).to(dtype);
}

at::Tensor bytes_of(const at::Tensor& rows_nd) {
  return rows_nd.contiguous().view(at::kByte).view({rows_nd.size(0), rows_nd.size(1) * rows_nd.element_size()});
}

StoredRows select_rows(const StoredRows& x_nd, const at::Tensor& index_m) {
  return {bytes_of(x_nd.rows).index_select(0, index_m).view(x_nd.rows.scalar_type()),
          x_nd.scales.defined() ? x_nd.scales.index_select(0, index_m) : at::Tensor()};
}

int64_t stored_row_bytes(int64_t head_dim, at::ScalarType stored) {
  return head_dim * static_cast<int64_t>(c10::elementSize(stored)) +
         (is_quantised(stored) ? static_cast<int64_t>(sizeof(float)) : 0);
}

const std::vector<std::string>& kv_dtype_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all{"auto"};
    for (const auto& [name, format] : named_formats()) all.push_back(name);
    return all;
  }();
  return names;
}

at::ScalarType kv_dtype_named(const std::string& name, at::ScalarType computed) {
  for (const auto& [known, format] : named_formats()) {
    if (known == name) return format;
  }
  TORCH_CHECK(name == "auto", "no format named ", name);
  return computed;
}

}  // namespace dms
