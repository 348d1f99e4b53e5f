#include "data/table_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "data/input_file.h"
#include "data/parquet_file.h"
#include "data/staged_file.h"
#include "recipes/strict_json.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

using Json = nlohmann::json;

std::string text_of(const std::string& path) {
  std::string text = read_file(path);
  if (text.starts_with(kGzipMagic)) {
    text.clear();
    unpack_gzip(path, [&](std::string_view bytes) { text += bytes; });
  }
  if (text.starts_with(kByteOrderMark)) text.erase(0, kByteOrderMark.size());
  return text;
}

TableRow row_of(const Json& object, const std::string& where) {
  if (!object.is_object()) throw UserError(where, "is no object", {"expected one JSON object a question"});
  TableRow row{where, {}};
  for (const auto& [key, value] : object.items()) {
    if (!value.is_null()) row.columns[key] = value.is_string() ? value.get<std::string>() : value.dump();
  }
  return row;
}

std::vector<TableRow> read_json_lines(const std::string& path, const std::string& text) {
  std::vector<TableRow> rows;
  int64_t line = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string content = text.substr(begin, end - begin);
    begin = end + 1;
    ++line;
    if (content.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = path + ":" + std::to_string(line);
    rows.push_back(row_of(parse_strict_json(content, where), where));
  }
  return rows;
}

std::vector<TableRow> read_json_list(const std::string& path, const std::string& text) {
  const Json list = parse_strict_json(text, path);
  std::vector<TableRow> rows;
  for (const Json& object : list) rows.push_back(row_of(object, path + "[" + std::to_string(rows.size()) + "]"));
  return rows;
}

// RFC 4180: quoted fields may hold commas, line breaks and doubled quotes.
Table read_csv(const std::string& path, const std::string& text) {
  std::vector<std::vector<std::string>> records(1);
  std::vector<int64_t> lines{1};
  std::string field;
  bool quoted = false, was_quoted = false;
  int64_t line = 1;
  const auto end_field = [&] {
    records.back().push_back(std::move(field));
    field.clear();
    was_quoted = false;
  };
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\n') ++line;
    if (quoted) {
      if (c != '"') {
        field += c;
      } else if (i + 1 < text.size() && text[i + 1] == '"') {
        field += text[++i];
      } else {
        quoted = false;
      }
    } else if (c == '"' && field.empty() && !was_quoted) {
      quoted = was_quoted = true;
    } else if (c == ',') {
      end_field();
    } else if (c == '\n') {
      end_field();
      records.emplace_back();
      lines.push_back(line);
    } else if (c != '\r') {
      field += c;
    }
  }
  if (quoted) throw UserError(path + ":" + std::to_string(lines.back()), "a quoted field is not closed");
  if (!field.empty() || !records.back().empty()) end_field();
  if (records.back().empty()) records.pop_back();

  Table table;
  if (!records.empty()) table.column_names = records.front();
  for (size_t r = 1; r < records.size(); ++r) {
    if (records[r].size() == 1 && records[r][0].empty()) continue;
    TableRow row{path + ":" + std::to_string(lines[r]), {}};
    if (records[r].size() != records[0].size()) {
      throw UserError(row.where, "has " + std::to_string(records[r].size()) + " fields",
                      {"the header has " + std::to_string(records[0].size())});
    }
    for (size_t c = 0; c < records[0].size(); ++c) row.columns[records[0][c]] = records[r][c];
    table.rows.push_back(std::move(row));
  }
  return table;
}

Table read_parquet(const std::string& path, const std::vector<std::string>& wanted) {
  Table table;
  table.column_names = parquet_columns(path);
  const size_t num_groups = parquet_row_groups(path).size();
  for (size_t group = 0; group < num_groups; ++group) {
    for_each_parquet_row(path, group, wanted, [&](const Json& object) {
      table.rows.push_back(row_of(object, path + ":" + std::to_string(table.rows.size() + 1)));
    });
  }
  return table;
}

}  // namespace

Table read_table(const std::string& path, const std::vector<std::string>& wanted) {
  const std::string text = text_of(path);
  if (text.starts_with(kParquetMagic)) return read_parquet(path, wanted);
  if (path.ends_with(".csv") || path.ends_with(".csv.gz")) return read_csv(path, text);
  Table table;
  const size_t first = text.find_first_not_of(" \t\r\n");
  table.rows =
      first != std::string::npos && text[first] == '[' ? read_json_list(path, text) : read_json_lines(path, text);
  std::set<std::string> names;
  for (const TableRow& row : table.rows) {
    for (const auto& [name, value] : row.columns) names.insert(name);
  }
  table.column_names.assign(names.begin(), names.end());
  return table;
}

}  // namespace dms
