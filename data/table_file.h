// A table as people publish questions in: JSON lines, a JSON list, CSV or Parquet, compressed with gzip or not.  Which it
// is shows in the content, but for CSV, which is told by its name (*.csv, *.csv.gz).
#pragma once

#include <map>
#include <string>
#include <vector>

namespace dms {

struct TableRow {
  std::string where;                           // file:line; of Parquet file:row
  std::map<std::string, std::string> columns;  // texts as they are, numbers and lists as JSON; nulls are left out
};

struct Table {
  std::vector<std::string> column_names;  // of all rows, in the file's order, or sorted when it has none
  std::vector<TableRow> rows;
};

// Of a Parquet file only the `wanted` columns are read: others may hold what has no text.  Throws UserError with file and
// line.
Table read_table(const std::string& path, const std::vector<std::string>& wanted);

}  // namespace dms
