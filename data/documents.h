// From files to documents: text files, JSONL and Parquet (records.h says what a record may be), plain or gzip.
// Files are read in slices, so that several threads can share one large file: scan() finds where to cut.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/records.h"
#include "recipes/user_error.h"

namespace dms {

struct TextSource {
  enum class Format { text, jsonl, parquet };
  std::string path;
  std::string name;  // base name, as recorded in the token file
  Format format = Format::text;
  bool is_gzip = false;
  uint64_t size_bytes = 0;
  int64_t modified_ns = 0;
  uint64_t inode = 0;  // a replaced file can have the size and, within a clock tick, the time of the old one
  std::string sha256;  // after scan()
  std::optional<RecordKind> kind;  // after scan(), of the first record; nullopt: it has no known form
};

// A text or gzip file whole, or whole lines of a JSONL file, or one row group of a Parquet file.
struct TextSlice {
  uint32_t source = 0;          // index into the list of sources
  uint64_t begin = 0, end = 0;  // bytes of the file, for Parquet a share of them
  uint64_t first_line = 1;
  uint64_t row_group = 0;
};

// The files that `inputs` (files and directories, searched recursively) name: inputs in the order given, the files of
// a directory sorted by path, hidden ones left out.  Throws UserError for what is no text: missing, compressed by
// something else than gzip, HDF5, binary, named twice.
std::vector<TextSource> find_sources(const std::vector<std::string>& inputs);

// Reads the source once: sets its SHA-256 and kind and returns its slices, JSONL ones of about `slice_bytes`.
// `on_bytes` is told how many bytes were read since the last call; what it throws ends the scan.
std::vector<TextSlice> scan(TextSource& source, uint32_t index, uint64_t slice_bytes, const RecordOptions& options,
                            const std::function<void(uint64_t)>& on_bytes);

// Calls back with each record's documents (a text file's text: BOM removed, may be empty or invalid UTF-8) and its line
// or row, in order.  `on_bad_record` gets the UserError of a record that is not what it should be; it may throw it.
// Throws UserError for a file that changed since the scan.
void for_each_record(const TextSource& source, const TextSlice& slice, const RecordOptions& options,
                     const std::function<void(std::vector<Document> documents, uint64_t line)>& on_record,
                     const std::function<void(const UserError& error)>& on_bad_record);

}  // namespace dms
