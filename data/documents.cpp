#include "data/documents.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "data/input_file.h"
#include "data/parquet_file.h"
#include "data/sha256.h"
#include "data/tokenizer_text.h"
#include "recipes/user_error.h"

namespace dms {
namespace fs = std::filesystem;
namespace {

constexpr size_t kReadBytes = 1 << 20;
constexpr size_t kLongestLineBytes = size_t{1} << 30;  // a compressed file may unpack to anything

int64_t modified_ns(const struct stat& status) {
  return int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec;
}

void check_is_text(const std::string& path, std::string_view head) {
  if (head.starts_with("\x89HDF\r\n\x1a\n")) {
    throw UserError(path, "is an HDF5 file; text, JSONL or Parquet is expected here");
  }
  for (const auto& [magic, tool] : {std::pair<std::string_view, const char*>{"\x28\xb5\x2f\xfd", "zstd -d"},
                                    {"\xfd"
                                     "7zXZ",
                                     "unxz"},
                                    {"BZh", "bunzip2"}}) {
    if (head.starts_with(magic)) {
      throw UserError(path, "is compressed; this program reads plain files and gzip",
                      {std::string("unpack it with ") + tool});
    }
  }
  if (const size_t zero = head.find('\0'); zero != std::string_view::npos) {
    throw UserError(path, "is not a text file: byte " + std::to_string(zero) + " is zero");
  }
}

TextSource examine(const std::string& path) {
  const InputFile file(path);
  const struct stat status = file.status();
  if (!S_ISREG(status.st_mode)) throw UserError(path, "is neither a file nor a directory");
  TextSource source;
  source.path = path;
  source.name = replace_invalid_utf8(fs::path(path).filename().string());
  const std::string head = file.read(0, 8192);
  source.is_gzip = head.starts_with(kGzipMagic);
  const std::string inner = source.is_gzip ? source.name.substr(0, source.name.rfind(".gz")) : source.name;
  if (head.starts_with(kParquetMagic)) {
    source.format = TextSource::Format::parquet;
  } else if (inner.ends_with(".jsonl") || inner.ends_with(".ndjson")) {
    source.format = TextSource::Format::jsonl;
  }
  if (!source.is_gzip && source.format != TextSource::Format::parquet) check_is_text(path, head);
  source.size_bytes = static_cast<uint64_t>(status.st_size);
  source.modified_ns = modified_ns(status);
  source.inode = status.st_ino;
  return source;
}

std::vector<std::string> files_below(const std::string& directory) {
  std::vector<std::string> paths;
  try {
    fs::recursive_directory_iterator entry(directory), end;
    for (; entry != end; ++entry) {
      const bool hidden = entry->path().filename().string().starts_with('.');
      if (hidden && entry->is_directory()) entry.disable_recursion_pending();
      if (!hidden && entry->is_regular_file()) paths.push_back(entry->path().string());
    }
  } catch (const fs::filesystem_error& error) {
    throw UserError(error.path1().empty() ? directory : error.path1().string(),
                    "cannot be searched: " + error.code().message());
  }
  if (paths.empty()) throw UserError(directory, "holds no files");
  std::sort(paths.begin(), paths.end());
  return paths;
}

bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

// Calls back with each line but blank ones, and its number; feed() takes the bytes in pieces.
class LineCutter {
 public:
  LineCutter(uint64_t first_line, std::function<void(std::string_view, uint64_t)> on_line)
      : line_(first_line), on_line_(std::move(on_line)) {}

  void feed(std::string_view bytes, const std::string& path) {
    for (size_t newline = bytes.find('\n'); newline != std::string_view::npos; newline = bytes.find('\n')) {
      if (rest_.empty()) {
        put(bytes.substr(0, newline));
      } else {
        rest_ += bytes.substr(0, newline);
        put(rest_);
        rest_.clear();
      }
      bytes.remove_prefix(newline + 1);
    }
    rest_ += bytes;
    if (rest_.size() > kLongestLineBytes) throw UserError(path, "has a line of more than a gigabyte");
  }
  void finish() {
    if (!rest_.empty()) put(rest_);
  }

 private:
  void put(std::string_view line) {
    if (line_ == 1 && line.starts_with(kByteOrderMark)) line.remove_prefix(kByteOrderMark.size());
    if (!is_blank(line)) on_line_(line, line_);
    ++line_;
  }

  uint64_t line_;
  std::function<void(std::string_view, uint64_t)> on_line_;
  std::string rest_;
};

// The columns of a Parquet file that kind_of() and documents_of() look at.
std::vector<std::string> record_columns(const RecordOptions& options) {
  if (!options.text_field.empty()) return {options.text_field};
  return {"text",  "messages", "conversations", "system",      "instruction",
          "input", "output",   "problem",       "generations", "correctness_math_verify"};
}

struct FirstRecordSeen {};

// The form of the first record; nullopt when it is none, which reading it will explain.
std::optional<RecordKind> first_kind(const TextSource& source, const std::vector<TextSlice>& slices,
                                     const RecordOptions& options) {
  std::optional<RecordKind> kind;
  const auto on_line = [&](std::string_view line, uint64_t) {
    try {
      kind = kind_of(parse_record(line, source.path), options);
    } catch (const UserError&) {  // which reading it will say, with its line
    }
    throw FirstRecordSeen();
  };
  try {
    if (source.format == TextSource::Format::parquet) {
      for (const TextSlice& slice : slices) {
        for_each_parquet_row(source.path, slice.row_group, record_columns(options), [&](const nlohmann::json& row) {
          kind = kind_of(row, options);
          throw FirstRecordSeen();
        });
      }
    } else if (source.is_gzip) {
      LineCutter cutter(1, on_line);
      unpack_gzip(source.path, [&](std::string_view bytes) { cutter.feed(bytes, source.path); });
      cutter.finish();
    } else {
      const InputFile file(source.path);
      LineCutter cutter(1, on_line);
      for (uint64_t position = 0; position < source.size_bytes;) {
        const std::string block = file.read(position, kReadBytes);
        if (block.empty()) break;
        cutter.feed(block, source.path);
        position += block.size();
      }
      cutter.finish();
    }
  } catch (const FirstRecordSeen&) {
  }
  return kind;
}

std::string unpacked(const TextSource& source) {
  std::string text;
  unpack_gzip(source.path, [&](std::string_view bytes) {
    text += bytes;
    if (text.size() > kLongestLineBytes) throw UserError(source.path, "unpacks to more than a gigabyte of one text");
  });
  check_is_text(source.path, std::string_view(text).substr(0, 8192));
  return text;
}

void check_unchanged(const TextSource& source, const InputFile& file) {
  const struct stat status = file.status();
  if (static_cast<uint64_t>(status.st_size) != source.size_bytes || modified_ns(status) != source.modified_ns ||
      status.st_ino != source.inode) {
    throw UserError(source.path, "changed while it was read", {"run the command again when nothing writes to it"});
  }
}

std::vector<TextSlice> parquet_slices(const TextSource& source, uint32_t index) {
  const std::vector<uint64_t> num_rows = parquet_row_groups(source.path);
  std::vector<TextSlice> slices;
  uint64_t row = 1;
  for (size_t group = 0; group < num_rows.size(); ++group) {
    const uint64_t begin = source.size_bytes * group / num_rows.size();
    const uint64_t end = source.size_bytes * (group + 1) / num_rows.size();
    slices.push_back({index, begin, end, row, group});
    row += num_rows[group];
  }
  return slices;
}

}  // namespace

std::vector<TextSource> find_sources(const std::vector<std::string>& inputs) {
  std::vector<TextSource> sources;
  std::set<std::string> seen;
  for (const std::string& input : inputs) {
    std::error_code error;
    const fs::file_status status = fs::status(input, error);
    if (!fs::exists(status))
      throw UserError(input, "does not exist", {"an input is a text, .jsonl or Parquet file or a directory of them"});
    for (const std::string& path : fs::is_directory(status) ? files_below(input) : std::vector<std::string>{input}) {
      if (!seen.insert(fs::weakly_canonical(path).string()).second) throw UserError(path, "is named twice as input");
      sources.push_back(examine(path));
    }
  }
  return sources;
}

std::vector<TextSlice> scan(TextSource& source, uint32_t index, uint64_t slice_bytes, const RecordOptions& options,
                            const std::function<void(uint64_t)>& on_bytes) {
  const InputFile file(source.path);
  const bool cut_at_lines = source.format == TextSource::Format::jsonl && !source.is_gzip;
  Sha256 hash;
  std::vector<TextSlice> slices;
  TextSlice slice{index, 0, 0, 1, 0};
  uint64_t line = 1;
  for (uint64_t position = 0; position < source.size_bytes;) {
    const std::string block = file.read(position, std::min<uint64_t>(kReadBytes, source.size_bytes - position));
    if (block.empty()) throw UserError(source.path, "became shorter while it was read");
    hash.update(block);
    for (size_t newline = cut_at_lines ? block.find('\n') : std::string::npos; newline != std::string::npos;
         newline = block.find('\n', newline + 1)) {
      ++line;
      slice.end = position + newline + 1;
      if (slice.end - slice.begin >= slice_bytes) {
        slices.push_back(slice);
        slice = {index, slice.end, slice.end, line, 0};
      }
    }
    position += block.size();
    on_bytes(block.size());
  }
  slice.end = source.size_bytes;
  if (slice.end > slice.begin) slices.push_back(slice);
  source.sha256 = hash.hex();
  if (source.format == TextSource::Format::parquet) slices = parquet_slices(source, index);
  if (source.format != TextSource::Format::text) source.kind = first_kind(source, slices, options);
  return slices;
}

void for_each_record(const TextSource& source, const TextSlice& slice, const RecordOptions& options,
                     const std::function<void(std::vector<Document> documents, uint64_t line)>& on_record,
                     const std::function<void(const UserError& error)>& on_bad_record) {
  const InputFile file(source.path);
  const auto where = [&](uint64_t line) { return source.path + ":" + std::to_string(line); };
  const auto on_json = [&](const nlohmann::json& record, uint64_t line) {
    return documents_of(record, source.kind.value_or(RecordKind::text), options, where(line));
  };
  const auto on_line = [&](std::string_view text, uint64_t line) {
    std::vector<Document> documents;
    try {
      documents = on_json(parse_record(text, where(line)), line);
    } catch (const UserError& error) {
      return on_bad_record(error);
    }
    on_record(std::move(documents), line);
  };
  if (source.format == TextSource::Format::parquet) {
    check_unchanged(source, file);
    uint64_t row = slice.first_line;
    for_each_parquet_row(source.path, slice.row_group, record_columns(options), [&](const nlohmann::json& record) {
      const uint64_t this_row = row++;
      std::vector<Document> documents;
      try {
        documents = on_json(record, this_row);
      } catch (const UserError& error) {
        return on_bad_record(error);
      }
      on_record(std::move(documents), this_row);
    });
    return;
  }
  if (source.is_gzip && source.format == TextSource::Format::jsonl) {
    check_unchanged(source, file);
    LineCutter cutter(1, on_line);
    unpack_gzip(source.path, [&](std::string_view bytes) { cutter.feed(bytes, source.path); });
    cutter.finish();
    return;
  }
  const std::string bytes = source.is_gzip ? unpacked(source) : file.read(slice.begin, slice.end - slice.begin);
  check_unchanged(source, file);
  if (source.format == TextSource::Format::jsonl) {
    LineCutter cutter(slice.first_line, on_line);
    cutter.feed(bytes, source.path);
    cutter.finish();
    return;
  }
  std::string_view text = bytes;
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  on_record({{std::string(text), {}}}, 1);
}

}  // namespace dms
