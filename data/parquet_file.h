// Parquet, the form in which data sets are published, through Arrow C++.  An optional part of the build: the pyarrow
// wheel carries Arrow's headers and libraries, and without it every function here throws the UserError that says how
// to convert the file.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace dms {

// The rows of each row group; a row group is the smallest part that is read at once.  Throws UserError.
std::vector<uint64_t> parquet_row_groups(const std::string& path);

// The names of the columns, in the file's order.  Throws UserError.
std::vector<std::string> parquet_columns(const std::string& path);

// Calls back with the rows of one row group as JSON objects, in order, holding those of `columns` that the file has.
// Throws UserError for a damaged file or a column type that has no JSON form.
void for_each_parquet_row(const std::string& path, size_t row_group, const std::vector<std::string>& columns,
                          const std::function<void(const nlohmann::json& row)>& on_row);

}  // namespace dms
