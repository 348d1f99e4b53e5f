// The build without Arrow.
#include "data/parquet_file.h"
#include "recipes/user_error.h"

namespace dms {
namespace {

[[noreturn]] void refuse(const std::string& path) {
  throw UserError(path, "is a Parquet file, and this program was built without Arrow",
                  {"convert it: python3 -c \"import pandas; pandas.read_parquet('FILE').to_json('FILE.jsonl', "
                   "orient='records', lines=True)\"",
                   "or install pyarrow into .venv and build again"});
}

}  // namespace

std::vector<uint64_t> parquet_row_groups(const std::string& path) { refuse(path); }
std::vector<std::string> parquet_columns(const std::string& path) { refuse(path); }

void for_each_parquet_row(const std::string& path, size_t, const std::vector<std::string>&,
                          const std::function<void(const nlohmann::json&)>&) {
  refuse(path);
}

}  // namespace dms
