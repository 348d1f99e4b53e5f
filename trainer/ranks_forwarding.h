// A group that passes everything on to another: to derive from, for watching what ranks ask of each other.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "trainer/ranks.h"

namespace dms {

class ForwardingRanks : public RankGroup {
 public:
  explicit ForwardingRanks(std::unique_ptr<RankGroup> ranks) : ranks_(std::move(ranks)) {}

  int64_t rank() const override { return ranks_->rank(); }
  int64_t size() const override { return ranks_->size(); }
  std::string host_of(int64_t rank) const override { return ranks_->host_of(rank); }
  std::unique_ptr<Pending> start_all_gather(const at::Tensor& out, const at::Tensor& mine,
                                            const std::string& what) override {
    return ranks_->start_all_gather(out, mine, what);
  }
  using RankGroup::broadcast;
  void broadcast(at::Tensor& tensor, int64_t from, const std::string& what) override {
    ranks_->broadcast(tensor, from, what);
  }
  std::vector<at::Tensor> gather(const at::Tensor& mine, int64_t to, const std::string& what) override {
    return ranks_->gather(mine, to, what);
  }
  double waited_seconds() const override { return ranks_->waited_seconds(); }
  FirstFailure record_failure(int exit_code, bool lost_another) override {
    return ranks_->record_failure(exit_code, lost_another);
  }

 private:
  const std::unique_ptr<RankGroup> ranks_;
};

}  // namespace dms
