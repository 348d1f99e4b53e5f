// What keys and values are stored in: the model's own dtype, or fewer bits.  int8 and float8 (e4m3) rows carry a scale
// each: the key, or the value, of one token in one head is its own block, so that one large token costs the others
// nothing, and a row can be written once and moved about without the rest.
//
//   int8     x ~ scale * i,  scale = max|row| / 127                 |error| <= scale / 2
//   float8   x ~ scale * e4m3,  scale = max|row| / 448              |error| <= max(|x| / 16, scale / 1024)
//
// Both round to nearest even.  The scale of a key multiplies its score and the scale of a value its weight, so attention
// never widens rows in memory.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

namespace dms {

struct StoredRows {
  at::Tensor rows;    // [..., d], as stored
  at::Tensor scales;  // [...], float32; undefined unless quantised
};

bool is_quantised(at::ScalarType stored);

StoredRows to_stored(const at::Tensor& x, at::ScalarType stored);
at::Tensor from_stored(const StoredRows& stored, at::ScalarType dtype);

// Rows x[index_m] of x [n, d].
StoredRows select_rows(const StoredRows& x_nd, const at::Tensor& index_m);
// Rows [n, d] as they are in memory, [n, bytes]: not every format has index operators, bytes have.
at::Tensor bytes_of(const at::Tensor& rows_nd);

// Bytes of a key or a value of d elements, its scale included.
int64_t stored_row_bytes(int64_t head_dim, at::ScalarType stored);

// The values of a --kv-dtype option: "auto" (`computed`, what the model computes in), "float32", "bfloat16", "int8", "fp8".
const std::vector<std::string>& kv_dtype_names();
at::ScalarType kv_dtype_named(const std::string& name, at::ScalarType computed);

}  // namespace dms
