// The ranks of a run: processes that compute one global batch together.  A group of one is the normal case, so nobody
// asks whether a run is distributed.  c10d stays behind this interface: tensors on the CPU travel by Gloo, those on GPUs by
// NCCL (the shards of frozen weights; the adapters' gradients, a few MB, travel on the CPU everywhere).
//
// All ranks call the collectives in the same order, from one thread.  A rank that waits watches the others' heartbeats:
// one that is killed, stopped or cut off ends the wait with RankLost, which names it and what was waited for.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "trainer/launch_environment.h"

namespace dms {

// Another rank stopped answering: a failure of the world, exit code 1.
class RankLost : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class RankGroup {
 public:
  virtual ~RankGroup() = default;

  virtual int64_t rank() const = 0;
  virtual int64_t size() const = 0;
  virtual std::string host_of(int64_t rank) const = 0;
  bool speaks() const { return rank() == 0; }

  // A collective under way.  Its tensors may not be touched until wait() has returned.
  class Pending {
   public:
    virtual ~Pending() = default;
    virtual void wait() = 0;  // throws RankLost
  };

  // out = every rank's `mine`, in rank order; both contiguous and of one dtype, `mine` of the same size on all ranks.
  // `what` completes "waiting for ...".
  virtual std::unique_ptr<Pending> start_all_gather(const at::Tensor& out, const at::Tensor& mine,
                                                    const std::string& what) = 0;
  // Rank `from`'s bytes, into everyone's tensor of the same size.
  virtual void broadcast(at::Tensor& tensor, int64_t from, const std::string& what) = 0;
  // Every rank's `mine` (of one shape), in rank order, on rank `to`; empty elsewhere.
  virtual std::vector<at::Tensor> gather(const at::Tensor& mine, int64_t to, const std::string& what) = 0;

  // Seconds this rank has spent waiting for others so far.
  virtual double waited_seconds() const = 0;

  // What the group knows of the first failure among its ranks.
  struct FirstFailure {
    bool mine = true;
    int exit_code = 1;
  };
  // Called by a rank that is about to end with an error; the first one speaks, the others end with its exit code.
  // A rank that merely lost another waits a moment for that one's own message.
  virtual FirstFailure record_failure(int exit_code, bool lost_another) = 0;

  // An all-gather that others may still be on their way to.
  class Gathering {
   public:
    at::Tensor wait();  // [size, ...mine's shape]; throws RankLost

   private:
    friend class RankGroup;
    at::Tensor mine_, out_;
    std::unique_ptr<Pending> pending_;
  };
  Gathering start_all_gather(const at::Tensor& mine, const std::string& what);
  at::Tensor all_gather(const at::Tensor& mine, const std::string& what) { return start_all_gather(mine, what).wait(); }
  // Rows of all ranks, each rank any number of them: [sum of counts, ...].  The second form only on rank `to`.
  at::Tensor all_gather_rows(const at::Tensor& mine, const std::string& what);
  at::Tensor gather_rows(const at::Tensor& mine, int64_t to, const std::string& what);
  // [size]
  std::vector<int64_t> all_gather(int64_t mine, const std::string& what);
  std::string broadcast(const std::string& bytes, int64_t from, const std::string& what);
  // A tensor of which only rank `from` knows shape and type; `tensor` itself there.
  at::Tensor broadcast_from(const at::Tensor& tensor, int64_t from, const std::string& what);
  bool any(bool mine, const std::string& what);
  void barrier(const std::string& what) { any(false, what); }

 private:
  at::Tensor join_rows(const std::vector<at::Tensor>& padded, const std::vector<int64_t>& counts) const;
};

// The group of one.
std::unique_ptr<RankGroup> single_rank();

// A group in name only, for trying an N-rank configuration in one process: every rank is taken to hold what this one
// holds, so collectives cost their memory and copies but no communication.
std::unique_ptr<RankGroup> pretended_ranks(int64_t size);

struct RankGroupOptions {
  double hang_seconds = 60.0;          // a rank that shows no sign of life for so long is lost
  double collective_seconds = 1800.0;  // one collective may take so long
  double rendezvous_seconds = 300.0;   // for all ranks to appear
};
// Meets the other ranks of `place`; the group of one when it is alone.  Throws RankLost when they do not appear.
std::unique_ptr<RankGroup> join_ranks(const LaunchPlace& place, const RankGroupOptions& options);

// Of the library through which GPUs exchange tensors, as "2.28.9"; empty in a build without it.
std::string nccl_version();

// Where the ranks of one host meet and leave word of a failure; for whoever starts them.
class RankStore {
 public:
  virtual ~RankStore() = default;
  virtual int port() const = 0;
  // As RankGroup::record_failure, on behalf of a rank that died without a word.
  virtual bool record_failure(int exit_code) = 0;
};
std::unique_ptr<RankStore> serve_rank_store();

// Samples [first, second) of a global batch that rank `rank` of `size` computes: contiguous blocks, as equal as can be.
std::pair<int64_t, int64_t> share_of_rank(int64_t global_batch, int64_t rank, int64_t size);

}  // namespace dms
