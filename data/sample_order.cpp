#include "data/sample_order.h"

#include <algorithm>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "recipes/user_error.h"

namespace dms {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014).  The standard library's shuffles and distributions differ between
// implementations; the order of training data must not.
class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t state) : state_(state) {}

  uint64_t next() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // Uniform in [0, bound): high half of a 128-bit product, rejecting the part that would favour small values.
  uint64_t below(uint64_t bound) {
    const uint64_t rejected = (0 - bound) % bound;
    for (;;) {
      const unsigned __int128 product = static_cast<unsigned __int128>(next()) * bound;
      if (static_cast<uint64_t>(product) >= rejected) return static_cast<uint64_t>(product >> 64);
    }
  }

 private:
  uint64_t state_;
};

SplitMix64 generator_of_epoch(uint64_t seed, int64_t epoch) {
  return SplitMix64(SplitMix64(seed).next() ^ SplitMix64(~static_cast<uint64_t>(epoch)).next());
}

void append(Sample& sample, const TokenFile& file, int64_t begin, int64_t end) {
  const int64_t shift = static_cast<int64_t>(sample.tokens.size()) - begin;  // position in the sample - in the file
  const std::vector<int32_t> tokens = file.tokens(begin, end);
  sample.tokens.insert(sample.tokens.end(), tokens.begin(), tokens.end());
  const std::vector<uint8_t> mask = file.loss_mask(begin, end);
  if (mask.empty()) {
    sample.loss_mask.resize(sample.tokens.size(), 1);
  } else {
    sample.loss_mask.insert(sample.loss_mask.end(), mask.begin(), mask.end());
  }
  const std::vector<int64_t>& offsets = file.document_offsets();
  sample.document_offsets.push_back(begin + shift);
  for (auto offset = std::upper_bound(offsets.begin(), offsets.end(), begin); offset != offsets.end() && *offset < end;
       ++offset) {
    if (*offset + shift != sample.document_offsets.back()) sample.document_offsets.push_back(*offset + shift);
  }
}

}  // namespace

struct SampleOrder::State {
  std::vector<std::shared_ptr<TokenFile>> files;
  std::vector<int64_t> file_begins;  // [num_files + 1], in the stream of all files
  int64_t sequence_length = 0;
  uint64_t seed = 0;

  struct Epoch {
    int64_t number = -1;
    int64_t shift = 0;                 // where in the stream window 0 begins
    std::vector<int64_t> permutation;  // position in the epoch -> window
  };
  std::mutex mutex;
  Epoch epoch;  // the one last asked for: training walks through epochs in order

  int64_t num_tokens() const { return file_begins.back(); }
  int64_t num_windows() const { return num_tokens() / sequence_length; }

  void enter_epoch(int64_t number) {
    if (epoch.number == number) return;
    SplitMix64 generator = generator_of_epoch(seed, number);
    epoch.shift = static_cast<int64_t>(generator.below(static_cast<uint64_t>(num_tokens())));
    epoch.permutation.resize(static_cast<size_t>(num_windows()));
    std::iota(epoch.permutation.begin(), epoch.permutation.end(), int64_t{0});
    for (size_t last = epoch.permutation.size(); last > 1; --last) {  // Fisher-Yates
      std::swap(epoch.permutation[last - 1], epoch.permutation[generator.below(last)]);
    }
    epoch.number = number;
  }

  // The stream is a ring: a window that passes its end goes on at its beginning, as if a document ended there.
  int64_t window_begin(int64_t index) {
    std::lock_guard lock(mutex);
    enter_epoch(index / num_windows());
    const int64_t window = epoch.permutation[static_cast<size_t>(index % num_windows())];
    return (epoch.shift + window * sequence_length) % num_tokens();
  }
};

SampleOrder::SampleOrder(std::vector<std::shared_ptr<TokenFile>> files, int64_t sequence_length, uint64_t seed)
    : state_(std::make_unique<State>()) {
  if (files.empty() || sequence_length < 1) {
    throw std::invalid_argument("SampleOrder: at least one file and a positive sequence length are needed");
  }
  state_->sequence_length = sequence_length;
  state_->seed = seed;
  state_->file_begins.push_back(0);
  for (const std::shared_ptr<TokenFile>& file : files) {
    state_->file_begins.push_back(state_->file_begins.back() + file->num_tokens());
  }
  if (state_->num_tokens() < sequence_length) {
    throw UserError(files.front()->path(),
                    (files.size() == 1 ? "holds " : "and the other files hold ") +
                        std::to_string(state_->num_tokens()) + " tokens, fewer than one sequence of " +
                        std::to_string(sequence_length),
                    {"add text or shorten the sequence length"});
  }
  state_->files = std::move(files);
}

SampleOrder::~SampleOrder() = default;

int64_t SampleOrder::samples_per_epoch() const { return state_->num_windows(); }

Sample SampleOrder::sample(int64_t index) const {
  if (index < 0) throw std::out_of_range("SampleOrder: sample " + std::to_string(index));
  const std::vector<int64_t>& begins = state_->file_begins;
  Sample sample;
  int64_t position = state_->window_begin(index);
  while (static_cast<int64_t>(sample.tokens.size()) < state_->sequence_length) {
    const auto next_file = std::upper_bound(begins.begin(), begins.end(), position);
    const int64_t begin = *(next_file - 1);
    const int64_t missing = state_->sequence_length - static_cast<int64_t>(sample.tokens.size());
    const int64_t end = std::min(*next_file, position + missing);
    append(sample, *state_->files[static_cast<size_t>(next_file - begins.begin() - 1)], position - begin, end - begin);
    position = end % state_->num_tokens();
  }
  sample.document_offsets.push_back(state_->sequence_length);
  return sample;
}

std::vector<Sample> SampleOrder::evaluation_windows(const TokenFile& file, int64_t sequence_length,
                                                    int64_t max_tokens) {
  const int64_t num_tokens = file.num_tokens();
  const int64_t count = std::min(max_tokens, num_tokens) / sequence_length;
  if (count < 1) {
    throw UserError(file.path(), "gives no window to evaluate: it holds " + std::to_string(num_tokens) +
                                     " tokens, at most " + std::to_string(max_tokens) +
                                     " are to be used, and one window takes " + std::to_string(sequence_length));
  }
  std::vector<Sample> windows(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = num_tokens / count * i + num_tokens % count * i / count;  // num_tokens * i / count
    append(windows[static_cast<size_t>(i)], file, begin, begin + sequence_length);
    windows[static_cast<size_t>(i)].document_offsets.push_back(sequence_length);
  }
  return windows;
}

}  // namespace dms
