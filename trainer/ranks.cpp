#include "trainer/ranks.h"

#include <unistd.h>

#include <numeric>

namespace dms {

namespace {

std::string this_host() {
  char name[256] = "";
  ::gethostname(name, sizeof(name) - 1);
  return name;
}

class Done : public RankGroup::Pending {
 public:
  void wait() override {}
};

// Ranks that all hold what this process holds: of one, the truth.
class AlikeRanks : public RankGroup {
 public:
  explicit AlikeRanks(int64_t size) : size_(size) {}
  int64_t rank() const override { return 0; }
  int64_t size() const override { return size_; }
  std::string host_of(int64_t) const override { return this_host(); }
  std::unique_ptr<Pending> start_all_gather(const at::Tensor& out, const at::Tensor& mine,
                                            const std::string&) override {
    out.view({size_, -1}).copy_(mine.reshape({1, -1}).expand({size_, -1}));
    return std::make_unique<Done>();
  }
  void broadcast(at::Tensor&, int64_t, const std::string&) override {}
  std::vector<at::Tensor> gather(const at::Tensor& mine, int64_t, const std::string&) override {
    return std::vector<at::Tensor>(static_cast<size_t>(size_), mine);
  }
  double waited_seconds() const override { return 0.0; }
  FirstFailure record_failure(int exit_code, bool) override { return {true, exit_code}; }

 private:
  const int64_t size_;
};

}  // namespace

RankGroup::Gathering RankGroup::start_all_gather(const at::Tensor& mine, const std::string& what) {
  std::vector<int64_t> shape = mine.sizes().vec();
  shape.insert(shape.begin(), size());
  Gathering gathering;
  gathering.mine_ = mine.contiguous();
  gathering.out_ = at::empty(shape, mine.options());
  gathering.pending_ = start_all_gather(gathering.out_, gathering.mine_, what);
  return gathering;
}

at::Tensor RankGroup::Gathering::wait() {
  pending_->wait();
  return out_;
}

namespace {

// Collectives move equal sizes: rows up to the rank that has most.
at::Tensor padded_rows(const at::Tensor& mine, int64_t rows) {
  if (mine.size(0) == rows) return mine.contiguous();
  std::vector<int64_t> shape = mine.sizes().vec();
  shape[0] = rows - mine.size(0);
  return at::cat({mine, at::zeros(shape, mine.options())});
}

int64_t largest(const std::vector<int64_t>& counts) { return *std::max_element(counts.begin(), counts.end()); }

}  // namespace

at::Tensor RankGroup::join_rows(const std::vector<at::Tensor>& padded, const std::vector<int64_t>& counts) const {
  std::vector<at::Tensor> rows;
  for (size_t r = 0; r < padded.size(); ++r) rows.push_back(padded[r].slice(0, 0, counts[r]));
  return rows.size() == 1 ? rows.front() : at::cat(rows);
}

at::Tensor RankGroup::all_gather_rows(const at::Tensor& mine, const std::string& what) {
  const std::vector<int64_t> counts = all_gather(mine.size(0), what);
  return join_rows(all_gather(padded_rows(mine, largest(counts)), what).unbind(0), counts);
}

at::Tensor RankGroup::gather_rows(const at::Tensor& mine, int64_t to, const std::string& what) {
  const std::vector<int64_t> counts = all_gather(mine.size(0), what);
  const std::vector<at::Tensor> all = gather(padded_rows(mine, largest(counts)), to, what);
  return all.empty() ? at::Tensor() : join_rows(all, counts);
}

std::vector<int64_t> RankGroup::all_gather(int64_t mine, const std::string& what) {
  const at::Tensor all = all_gather(at::full({1}, mine, at::kLong), what);
  return {all.data_ptr<int64_t>(), all.data_ptr<int64_t>() + all.numel()};
}

std::string RankGroup::broadcast(const std::string& bytes, int64_t from, const std::string& what) {
  at::Tensor length = at::full({1}, static_cast<int64_t>(bytes.size()), at::kLong);
  broadcast(length, from, what);
  at::Tensor buffer = at::empty({length.item<int64_t>()}, at::kByte);
  if (rank() == from) std::copy(bytes.begin(), bytes.end(), buffer.data_ptr<uint8_t>());
  if (buffer.numel() > 0) broadcast(buffer, from, what);
  return {buffer.data_ptr<uint8_t>(), buffer.data_ptr<uint8_t>() + buffer.numel()};
}

at::Tensor RankGroup::broadcast_from(const at::Tensor& tensor, int64_t from, const std::string& what) {
  constexpr int64_t kMostDimensions = 8;
  at::Tensor header = at::zeros({kMostDimensions + 2}, at::kLong);  // type, dimensions, sizes
  int64_t* h = header.data_ptr<int64_t>();
  if (rank() == from) {
    TORCH_CHECK(tensor.dim() <= kMostDimensions, "a tensor of ", tensor.dim(), " dimensions");
    h[0] = static_cast<int64_t>(tensor.scalar_type());
    h[1] = tensor.dim();
    std::copy(tensor.sizes().begin(), tensor.sizes().end(), h + 2);
  }
  broadcast(header, from, what);
  at::Tensor out =
      rank() == from ? tensor.contiguous()
                     : at::empty(at::IntArrayRef(h + 2, static_cast<size_t>(h[1])), static_cast<at::ScalarType>(h[0]));
  if (out.numel() > 0) broadcast(out, from, what);
  return out;
}

bool RankGroup::any(bool mine, const std::string& what) {
  const std::vector<int64_t> all = all_gather(mine ? 1 : 0, what);
  return std::accumulate(all.begin(), all.end(), int64_t{0}) > 0;
}

std::unique_ptr<RankGroup> single_rank() { return std::make_unique<AlikeRanks>(1); }
std::unique_ptr<RankGroup> pretended_ranks(int64_t size) { return std::make_unique<AlikeRanks>(size); }

std::pair<int64_t, int64_t> share_of_rank(int64_t global_batch, int64_t rank, int64_t size) {
  return {global_batch * rank / size, global_batch * (rank + 1) / size};
}

}  // namespace dms
