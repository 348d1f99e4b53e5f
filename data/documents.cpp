#include "data/documents.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "data/staged_file.h"
#include "data/tokenizer_text.h"
#include "recipes/user_error.h"

namespace dms {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr size_t kReadBytes = 1 << 20;

class InputFile {
 public:
  explicit InputFile(const std::string& path) : path_(path) {
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) throw UserError(path, std::string("cannot be read: ") + std::strerror(errno));
  }
  ~InputFile() { ::close(descriptor_); }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  struct stat status() const {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) throw IoError(path_, "examine", errno);
    return status;
  }

  // Fewer than `num_bytes` only at the end of the file.
  std::string read(uint64_t begin, uint64_t num_bytes) const {
    std::string bytes(num_bytes, '\0');
    size_t size = 0;
    while (size < bytes.size()) {
      const ssize_t count =
          ::pread(descriptor_, bytes.data() + size, bytes.size() - size, static_cast<off_t>(begin + size));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) throw IoError(path_, "read", errno);
      if (count == 0) break;
      size += static_cast<size_t>(count);
    }
    bytes.resize(size);
    return bytes;
  }

 private:
  std::string path_;
  int descriptor_;
};

int64_t modified_ns(const struct stat& status) {
  return int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec;
}

void check_is_text(const std::string& path, std::string_view head) {
  if (head.starts_with("PAR1")) {
    throw UserError(
        path, "is a Parquet file; this program reads text and JSONL",
        {"convert it: python3 -c \"import pyarrow.parquet as p, json; "
         "[print(json.dumps({'text': t.as_py()})) for t in p.read_table('FILE')['COLUMN']]\" > FILE.jsonl"});
  }
  if (head.starts_with("\x89HDF\r\n\x1a\n")) {
    throw UserError(path, "is an HDF5 file; text or JSONL is expected here");
  }
  for (const auto& [magic, tool] : {std::pair<std::string_view, const char*>{"\x1f\x8b", "gunzip"},
                                    {"\x28\xb5\x2f\xfd", "zstd -d"},
                                    {"\xfd"
                                     "7zXZ",
                                     "unxz"},
                                    {"BZh", "bunzip2"}}) {
    if (head.starts_with(magic)) {
      throw UserError(path, "is compressed; this program reads plain files", {std::string("unpack it with ") + tool});
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
  check_is_text(path, file.read(0, 8192));
  TextSource source;
  source.path = path;
  source.name = replace_invalid_utf8(fs::path(path).filename().string());
  source.is_jsonl = source.name.ends_with(".jsonl");
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

// The text of one line; throws UserError at `where` when it is something else.
std::string text_of_record(std::string_view line, const std::string& where) {
  nlohmann::json record;
  try {
    record = nlohmann::json::parse(line);
  } catch (const nlohmann::json::exception& error) {
    const std::string message = error.what();  // "[json.exception...] parse error at line 1, column 5: reason"
    const size_t reason = message.find("column ");
    throw UserError(where, "is not valid JSON: " + (reason == std::string::npos ? message : message.substr(reason)),
                    {"a .jsonl file holds one object {\"text\": \"...\"} a line"});
  }
  const std::vector<std::string> expected = {"this version reads only {\"text\": \"...\"}, one object a line"};
  if (!record.is_object())
    throw UserError(where, std::string("is a JSON ") + record.type_name() + ", not an object", expected);
  if (const auto text = record.find("text"); text != record.end()) {
    if (!text->is_string())
      throw UserError(where, std::string("'text' is a ") + text->type_name() + ", not a string", expected);
    return *text;
  }
  for (const char* key : {"messages", "conversations", "instruction", "problem"}) {
    if (record.contains(key)) {
      throw UserError(where, std::string("is a record with '") + key + "', not 'text'",
                      {expected[0],
                       "render each record to the text that the model shall see first, for example with "
                       "transformers' apply_chat_template(..., tokenize=False)"});
    }
  }
  std::string keys;
  for (const auto& [key, ignored] : record.items()) keys += (keys.empty() ? "'" : ", '") + key.substr(0, 40) + "'";
  throw UserError(where, "has no key 'text'",
                  {"its keys: " + (keys.empty() ? "none" : keys.substr(0, 200)), expected[0]});
}

}  // namespace

std::vector<TextSource> find_sources(const std::vector<std::string>& inputs) {
  std::vector<TextSource> sources;
  std::set<std::string> seen;
  for (const std::string& input : inputs) {
    std::error_code error;
    const fs::file_status status = fs::status(input, error);
    if (!fs::exists(status))
      throw UserError(input, "does not exist", {"an input is a text file, a .jsonl file or a directory of them"});
    for (const std::string& path : fs::is_directory(status) ? files_below(input) : std::vector<std::string>{input}) {
      if (!seen.insert(fs::weakly_canonical(path).string()).second) throw UserError(path, "is named twice as input");
      sources.push_back(examine(path));
    }
  }
  return sources;
}

std::vector<TextSlice> scan(TextSource& source, uint32_t index, uint64_t slice_bytes,
                            const std::function<void(uint64_t)>& on_bytes) {
  const InputFile file(source.path);
  Sha256 hash;
  std::vector<TextSlice> slices;
  TextSlice slice{index, 0, 0, 1};
  uint64_t line = 1;
  for (uint64_t position = 0; position < source.size_bytes;) {
    const std::string block = file.read(position, std::min<uint64_t>(kReadBytes, source.size_bytes - position));
    if (block.empty()) throw UserError(source.path, "became shorter while it was read");
    hash.update(block);
    for (size_t newline = source.is_jsonl ? block.find('\n') : std::string::npos; newline != std::string::npos;
         newline = block.find('\n', newline + 1)) {
      ++line;
      slice.end = position + newline + 1;
      if (slice.end - slice.begin >= slice_bytes) {
        slices.push_back(slice);
        slice = {index, slice.end, slice.end, line};
      }
    }
    position += block.size();
    on_bytes(block.size());
  }
  slice.end = source.size_bytes;
  if (slice.end > slice.begin) slices.push_back(slice);
  source.sha256 = hash.hex();
  return slices;
}

void for_each_document(const TextSource& source, const TextSlice& slice,
                       const std::function<void(std::string_view text, uint64_t line)>& on_document) {
  const InputFile file(source.path);
  const std::string bytes = file.read(slice.begin, slice.end - slice.begin);
  const struct stat status = file.status();
  if (static_cast<uint64_t>(status.st_size) != source.size_bytes || modified_ns(status) != source.modified_ns ||
      status.st_ino != source.inode) {
    throw UserError(source.path, "changed while it was read", {"run the command again when nothing writes to it"});
  }
  std::string_view text = bytes;
  if (slice.begin == 0 && text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  if (!source.is_jsonl) {
    on_document(text, 1);
    return;
  }
  for (uint64_t line = slice.first_line; !text.empty(); ++line) {
    const size_t newline = text.find('\n');
    const std::string_view record = text.substr(0, newline);
    text.remove_prefix(newline == std::string_view::npos ? text.size() : newline + 1);
    if (record.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    on_document(text_of_record(record, source.path + ":" + std::to_string(line)), line);
  }
}

}  // namespace dms
