// The build with Arrow C++; the only user of it.
#include <arrow/api.h>
#include <arrow/io/file.h>
#include <parquet/arrow/reader.h>
#include <parquet/exception.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "data/parquet_file.h"
#include "data/tokenizer_text.h"
#include "recipes/user_error.h"

namespace dms {
namespace {

using Json = nlohmann::json;

void check(const arrow::Status& status, const std::string& path) {
  if (!status.ok()) throw UserError(path, "cannot be read as Parquet: " + status.message());
}

template <typename T>
T value_of(arrow::Result<T> result, const std::string& path) {
  check(result.status(), path);
  return std::move(result).ValueUnsafe();
}

std::unique_ptr<parquet::arrow::FileReader> open(const std::string& path) {
  const auto file = value_of(arrow::io::ReadableFile::Open(path), path);
  return value_of(parquet::arrow::OpenFile(file, arrow::default_memory_pool()), path);
}

template <typename ArrayType>
const ArrayType& as(const arrow::Array& array) {
  return static_cast<const ArrayType&>(array);
}

Json list_of(const arrow::Array& values, int64_t begin, int64_t end, const std::string& path);

Json json_of(const arrow::Array& array, int64_t row, const std::string& path) {
  if (array.IsNull(row)) return nullptr;
  switch (array.type_id()) {
    case arrow::Type::STRING:
      return replace_invalid_utf8(as<arrow::StringArray>(array).GetView(row));
    case arrow::Type::LARGE_STRING:
      return replace_invalid_utf8(as<arrow::LargeStringArray>(array).GetView(row));
    case arrow::Type::BOOL:
      return as<arrow::BooleanArray>(array).Value(row);
    case arrow::Type::INT32:
      return as<arrow::Int32Array>(array).Value(row);
    case arrow::Type::INT64:
      return as<arrow::Int64Array>(array).Value(row);
    case arrow::Type::FLOAT:
      return as<arrow::FloatArray>(array).Value(row);
    case arrow::Type::DOUBLE:
      return as<arrow::DoubleArray>(array).Value(row);
    case arrow::Type::NA:
      return nullptr;
    case arrow::Type::LIST: {
      const auto& list = as<arrow::ListArray>(array);
      return list_of(*list.values(), list.value_offset(row), list.value_offset(row + 1), path);
    }
    case arrow::Type::LARGE_LIST: {
      const auto& list = as<arrow::LargeListArray>(array);
      return list_of(*list.values(), list.value_offset(row), list.value_offset(row + 1), path);
    }
    case arrow::Type::STRUCT: {
      const auto& fields = as<arrow::StructArray>(array);
      Json object = Json::object();
      for (int i = 0; i < fields.num_fields(); ++i) {
        object[fields.struct_type()->field(i)->name()] = json_of(*fields.field(i), row, path);
      }
      return object;
    }
    case arrow::Type::DICTIONARY: {
      const auto& dictionary = as<arrow::DictionaryArray>(array);
      return json_of(*dictionary.dictionary(), dictionary.GetValueIndex(row), path);
    }
    default:
      throw UserError(
          path, "a column has the type " + array.type()->ToString() + ", which is neither text nor a list of texts");
  }
}

Json list_of(const arrow::Array& values, int64_t begin, int64_t end, const std::string& path) {
  Json list = Json::array();
  for (int64_t i = begin; i < end; ++i) list.push_back(json_of(values, i, path));
  return list;
}

// Parquet throws for some damage and returns a status for other.
template <typename Action>
auto reading(const std::string& path, const Action& action) {
  try {
    return action();
  } catch (const parquet::ParquetException& error) {
    throw UserError(path, std::string("cannot be read as Parquet: ") + error.what());
  }
}

}  // namespace

std::vector<uint64_t> parquet_row_groups(const std::string& path) {
  return reading(path, [&] {
    const auto reader = open(path);
    std::vector<uint64_t> num_rows;
    for (int i = 0; i < reader->num_row_groups(); ++i) {
      num_rows.push_back(static_cast<uint64_t>(reader->parquet_reader()->metadata()->RowGroup(i)->num_rows()));
    }
    return num_rows;
  });
}

std::vector<std::string> parquet_columns(const std::string& path) {
  return reading(path, [&] {
    const auto reader = open(path);
    const auto* root = reader->parquet_reader()->metadata()->schema()->group_node();
    std::vector<std::string> names;
    for (int i = 0; i < root->field_count(); ++i) names.push_back(root->field(i)->name());
    return names;
  });
}

void for_each_parquet_row(const std::string& path, size_t row_group, const std::vector<std::string>& columns,
                          const std::function<void(const Json& row)>& on_row) {
  reading(path, [&] {
    const auto reader = open(path);
    // A list of structs is several of Parquet's columns: those below a wanted field are asked for.
    const auto* parquet_schema = reader->parquet_reader()->metadata()->schema();
    std::vector<int> wanted;
    for (int i = 0; i < parquet_schema->num_columns(); ++i) {
      const std::string name = parquet_schema->GetColumnRoot(i)->name();
      if (std::find(columns.begin(), columns.end(), name) != columns.end()) wanted.push_back(i);
    }
    const std::shared_ptr<arrow::Table> table =
        value_of(reader->ReadRowGroup(static_cast<int>(row_group), wanted), path);
    arrow::TableBatchReader batches(*table);
    std::shared_ptr<arrow::RecordBatch> batch;
    for (check(batches.ReadNext(&batch), path); batch != nullptr; check(batches.ReadNext(&batch), path)) {
      for (int64_t row = 0; row < batch->num_rows(); ++row) {
        Json object = Json::object();
        for (int i = 0; i < batch->num_columns(); ++i)
          object[batch->column_name(i)] = json_of(*batch->column(i), row, path);
        on_row(object);
      }
    }
    return 0;
  });
}

}  // namespace dms
