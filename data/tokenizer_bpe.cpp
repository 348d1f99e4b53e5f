#include "data/tokenizer_bpe.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <queue>
#include <tuple>

#include "data/tokenizer_text.h"

namespace dms {
namespace {

constexpr size_t kLongestCachedBytes = 64;
constexpr size_t kMostCachedPieces = 1 << 17;

struct ViewHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

struct PieceCache {
  uint64_t serial = 0;
  std::unordered_map<std::string, std::vector<int32_t>, ViewHash, std::equal_to<>> ids;
};

}  // namespace

BytePairEncoder::BytePairEncoder(const TokenizerDescription& description) : unk_id_(description.unk_id) {
  static std::atomic<uint64_t> last_serial = 0;
  serial_ = ++last_serial;
  std::unordered_map<std::string_view, int32_t> id_of;
  std::fill(std::begin(id_of_byte_), std::end(id_of_byte_), -1);
  for (const auto& [token, id] : description.vocab) {
    id_of.emplace(token, id);
    const std::optional<std::string> bytes = bytes_of_token(token);
    if (!bytes) continue;  // only an added token can be spelled outside the byte-level alphabet
    if (bytes->size() == 1) id_of_byte_[static_cast<unsigned char>((*bytes)[0])] = id;
    if (description.ignore_merges) whole_pieces_.emplace(*bytes, id);
  }
  merges_.reserve(description.merges.size());
  for (size_t rank = 0; rank < description.merges.size(); ++rank) {
    const auto& [left, right] = description.merges[rank];
    merges_[pair_key(id_of.at(left), id_of.at(right))] = {static_cast<int32_t>(rank), id_of.at(left + right)};
  }
}

void BytePairEncoder::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  thread_local PieceCache cache;
  if (piece.size() > kLongestCachedBytes) {
    const std::vector<int32_t> found = merged(piece);
    ids.insert(ids.end(), found.begin(), found.end());
    return;
  }
  if (cache.serial != serial_ || cache.ids.size() >= kMostCachedPieces) {
    cache.serial = serial_;
    cache.ids.clear();
  }
  auto found = cache.ids.find(piece);
  if (found == cache.ids.end()) found = cache.ids.emplace(piece, merged(piece)).first;
  ids.insert(ids.end(), found->second.begin(), found->second.end());
}

std::vector<int32_t> BytePairEncoder::merged(std::string_view piece) const {
  if (!whole_pieces_.empty()) {
    const auto whole = whole_pieces_.find(std::string(piece));
    if (whole != whole_pieces_.end()) return {whole->second};
  }
  struct Symbol {
    int32_t id, previous, next;  // neighbours by index, -1 = none; id -1 = merged away
  };
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  for (const char byte : piece) {
    int32_t id = id_of_byte_[static_cast<unsigned char>(byte)];
    if (id < 0 && !unk_id_) continue;  // the reference drops what it cannot name
    if (id < 0) id = *unk_id_;
    const int32_t index = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, index - 1, index + 1});
  }
  if (symbols.empty()) return {};
  symbols.back().next = -1;

  using Candidate = std::tuple<int32_t, int32_t, int32_t>;  // rank, index of the left symbol, id after merging
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto propose = [&](int32_t left) {
    if (left < 0 || symbols[static_cast<size_t>(left)].next < 0) return;
    const Symbol& symbol = symbols[static_cast<size_t>(left)];
    const auto found = merges_.find(pair_key(symbol.id, symbols[static_cast<size_t>(symbol.next)].id));
    if (found != merges_.end()) candidates.emplace(found->second.rank, left, found->second.id);
  };
  for (int32_t i = 0; i < static_cast<int32_t>(symbols.size()); ++i) propose(i);

  while (!candidates.empty()) {
    const auto [rank, left, id] = candidates.top();
    candidates.pop();
    Symbol& symbol = symbols[static_cast<size_t>(left)];
    if (symbol.id < 0 || symbol.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(symbol.next)];
    // An entry is stale when one of the pair has merged with something else since.
    const auto found = merges_.find(pair_key(symbol.id, right.id));
    if (found == merges_.end() || found->second.id != id) continue;
    symbol.id = id;
    symbol.next = right.next;
    right.id = -1;
    if (symbol.next >= 0) symbols[static_cast<size_t>(symbol.next)].previous = left;
    propose(symbol.previous);
    propose(left);
  }

  std::vector<int32_t> ids;
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next)
    ids.push_back(symbols[static_cast<size_t>(i)].id);
  return ids;
}

}  // namespace dms
