// Token files.
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/token_file.h"
#include "tools/inspect.h"

namespace dms {
namespace {

using nlohmann::ordered_json;

int64_t num_counted(const TokenFile& file) {
  constexpr int64_t kChunkTokens = 1 << 20;
  int64_t counted = 0;
  for (int64_t begin = 0; begin < file.num_tokens(); begin += kChunkTokens) {
    const int64_t end = std::min(file.num_tokens(), begin + kChunkTokens);
    const std::vector<uint8_t> mask = file.loss_mask(begin, end);
    counted += mask.empty() ? end - begin : std::count_if(mask.begin(), mask.end(), [](uint8_t m) { return m != 0; });
  }
  return counted;
}

}  // namespace

void describe_token_file(const std::string& path, ordered_json& description) {
  const auto file = TokenFile::open(path);
  const std::vector<int64_t>& offsets = file->document_offsets();
  std::vector<int64_t> lengths;
  for (size_t i = 1; i < offsets.size(); ++i) lengths.push_back(offsets[i] - offsets[i - 1]);
  std::sort(lengths.begin(), lengths.end());
  description["tokens"] = file->num_tokens();
  description["counted_tokens"] = num_counted(*file);
  description["documents"] = lengths.size();
  if (!lengths.empty()) {
    description["document_tokens"] = {
        {"shortest", lengths.front()}, {"median", lengths[lengths.size() / 2]}, {"longest", lengths.back()}};
  }
  description["vocab_size"] = file->vocab_size();
  description["file_bytes"] = std::filesystem::file_size(path);
  description["sources"] = file->source_names();
  ordered_json attributes = ordered_json::parse(file->attributes_json());
  if (const auto options = attributes.find("options_json"); options != attributes.end() && options->is_string()) {
    ordered_json parsed = ordered_json::parse(options->get<std::string>(), nullptr, /*allow_exceptions=*/false);
    attributes.erase("options_json");
    if (!parsed.is_discarded()) attributes["options"] = parsed;
  }
  description["attributes"] = attributes;
}

}  // namespace dms
