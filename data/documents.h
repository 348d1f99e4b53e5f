// From files to documents.  A .jsonl file holds one {"text": ...} object a line; any other file is one document.
// Files are read in slices, so that several threads can share one large file: scan() finds where to cut.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace dms {

struct TextSource {
  std::string path;
  std::string name;  // base name, as recorded in the token file
  bool is_jsonl = false;
  uint64_t size_bytes = 0;
  int64_t modified_ns = 0;
  uint64_t inode = 0;  // a replaced file can have the size and, within a clock tick, the time of the old one
  std::string sha256;  // after scan()
};

// A text file whole, or whole lines of a JSONL file.
struct TextSlice {
  uint32_t source = 0;          // index into the list of sources
  uint64_t begin = 0, end = 0;  // bytes
  uint64_t first_line = 1;
};

// The files that `inputs` (files and directories, searched recursively) name: inputs in the order given, the files of
// a directory sorted by path, hidden ones left out.  Throws UserError for what is no text: missing, compressed,
// Parquet, HDF5, binary, named twice.
std::vector<TextSource> find_sources(const std::vector<std::string>& inputs);

// Reads the source once: sets its SHA-256 and returns its slices, JSONL ones of about `slice_bytes`.  `on_bytes` is
// told how many bytes were read since the last call; what it throws ends the scan.
std::vector<TextSlice> scan(TextSource& source, uint32_t index, uint64_t slice_bytes,
                            const std::function<void(uint64_t)>& on_bytes);

// Calls back with each document's text (BOM removed; may be empty or invalid UTF-8) and its line, in order.  Throws
// UserError naming file and line for a line that is no {"text": ...}, and for a file that changed since the scan.
void for_each_document(const TextSource& source, const TextSlice& slice,
                       const std::function<void(std::string_view text, uint64_t line)>& on_document);

}  // namespace dms
