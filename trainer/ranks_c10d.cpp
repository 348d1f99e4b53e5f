// The ranks' process groups, c10d over Gloo and, for tensors on GPUs, over NCCL; and the store through which ranks meet,
// show that they are alive, and leave word of a failure.
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#define USE_C10D_GLOO 1
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <future>
#include <mutex>
#include <thread>

#include "recipes/user_error.h"
#include "trainer/ranks.h"
#include "trainer/ranks_nccl.h"

namespace dms {

namespace {

using Clock = std::chrono::steady_clock;
using StorePtr = c10::intrusive_ptr<c10d::Store>;

// How long a rank that lost another waits for that one's own word, and the host of the store for the others to read it.
constexpr double kLastWordSeconds = 3.0;
// A store that took longer is not asked again.
constexpr double kStoreAnswersSeconds = 5.0;
// From here on an all-gather is worth a message a rank.
constexpr size_t kLargeGatherBytes = size_t{64} << 10;
constexpr const char* kFailureKey = "failure";
constexpr const char* kEndedKey = "ended";

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }
std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1e3));
}
void sleep_seconds(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

// c10's messages carry a stack trace.
std::string reason_of(const std::exception& error) {
  const auto* of_c10 = dynamic_cast<const c10::Error*>(&error);
  const std::string text = of_c10 != nullptr ? of_c10->what_without_backtrace() : error.what();
  return text.substr(0, text.find('\n'));
}

std::string numbered(const char* key, int64_t rank) { return std::string(key) + "/" + std::to_string(rank); }

std::string plain(double seconds) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g s", seconds);
  return text;
}

// This host's own address on the way to rank 0.
std::string own_address(const LaunchPlace& place) {
  addrinfo hints = {}, *found = nullptr;
  hints.ai_socktype = SOCK_DGRAM;
  std::string own;
  if (::getaddrinfo(place.address.c_str(), std::to_string(place.port).c_str(), &hints, &found) == 0) {
    for (const addrinfo* a = found; a != nullptr && own.empty(); a = a->ai_next) {
      const int descriptor = ::socket(a->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
      sockaddr_storage name = {};
      socklen_t length = sizeof(name);
      char text[NI_MAXHOST];
      // Connecting a datagram socket sends nothing; it asks the routing table.
      if (descriptor >= 0 && ::connect(descriptor, a->ai_addr, a->ai_addrlen) == 0 &&
          ::getsockname(descriptor, reinterpret_cast<sockaddr*>(&name), &length) == 0 &&
          ::getnameinfo(reinterpret_cast<sockaddr*>(&name), length, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) ==
              0) {
        own = text;
      }
      if (descriptor >= 0) ::close(descriptor);
    }
    ::freeaddrinfo(found);
  }
  if (place.local_size == place.size || (!own.empty() && !own.starts_with("127.") && own != "::1")) return own;

  // Rank 0's host may know itself as 127.0.1.1; the others need an address of its that leads there.
  ifaddrs* interfaces = nullptr;
  if (::getifaddrs(&interfaces) != 0) return own;
  for (const ifaddrs* i = interfaces; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || i->ifa_addr->sa_family != AF_INET) continue;
    char text[INET_ADDRSTRLEN];
    ::inet_ntop(AF_INET, &reinterpret_cast<sockaddr_in*>(i->ifa_addr)->sin_addr, text, sizeof(text));
    if (!std::string(text).starts_with("127.")) {
      own = text;
      break;
    }
  }
  ::freeifaddrs(interfaces);
  return own;
}

// Counts up in the store while this process runs, and notes when each other rank's count last moved.  Every rank's
// first count must be there.
class Heartbeats {
 public:
  Heartbeats(const StorePtr& store, int64_t rank, int64_t size, double hang_seconds)
      : store_(store->clone()),
        rank_(rank),
        size_(size),
        interval_seconds_(std::clamp(hang_seconds / 20.0, 0.05, 0.5)),
        last_moved_(static_cast<size_t>(size)) {
    for (auto& time : last_moved_) time = now();
    thread_ = std::thread([this] { run(); });
  }
  ~Heartbeats() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  double interval_seconds() const { return interval_seconds_; }
  double silent_seconds(int64_t rank) const {
    return static_cast<double>(now() - last_moved_[static_cast<size_t>(rank)].load()) * 1e-9;
  }
  // This rank's own beat comes back.  Asking a store that was cut off may block for a quarter of an hour.
  bool store_answers() const { return silent_seconds(rank_) < kStoreAnswersSeconds; }

 private:
  static int64_t now() { return std::chrono::nanoseconds(Clock::now().time_since_epoch()).count(); }

  void run() {
    std::vector<std::string> keys;
    for (int64_t r = 0; r < size_; ++r) keys.push_back(numbered("beat", r));
    std::vector<std::vector<uint8_t>> seen(keys.size());
    std::unique_lock<std::mutex> lock(mutex_);
    for (int64_t beat = 1; !stopping_; ++beat) {
      lock.unlock();
      try {
        store_->set(numbered("beat", rank_), std::to_string(beat));
        const std::vector<std::vector<uint8_t>> current = store_->multiGet(keys);
        for (size_t r = 0; r < current.size(); ++r) {
          if (current[r] != seen[r]) last_moved_[r] = now();
        }
        seen = current;
      } catch (const std::exception&) {
        // Then nobody's beat moves, which is what the waiting thread looks at.
      }
      lock.lock();
      wake_.wait_for(lock, std::chrono::duration<double>(interval_seconds_), [this] { return stopping_; });
    }
  }

  const StorePtr store_;
  const int64_t rank_, size_;
  const double interval_seconds_;
  std::vector<std::atomic<int64_t>> last_moved_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread thread_;
};

class C10dRanks : public RankGroup {
 public:
  C10dRanks(const LaunchPlace& place, const RankGroupOptions& options) : place_(place), options_(options) {
    char host[256] = "";
    ::gethostname(host, sizeof(host) - 1);
    hosts_.assign(static_cast<size_t>(place.size), "");
    hosts_[static_cast<size_t>(place.rank)] = host;
    meet();
    beats_ = std::make_unique<Heartbeats>(store_, place.rank, place.size, options.hang_seconds);
    connect();
  }

  ~C10dRanks() override {
    if (device_backend_ != nullptr) leave_device_backend();
    // The store's host leaves last: the others' final beats would find nobody.
    try {
      if (store_answers()) store_->add(kEndedKey, 1);
      if (serves_store()) wait_for_the_others();
    } catch (const std::exception&) {
      // It left first, which is no failure of a run that is over.
    }
  }

  int64_t rank() const override { return place_.rank; }
  int64_t size() const override { return place_.size; }
  std::string host_of(int64_t rank) const override { return hosts_.at(static_cast<size_t>(rank)); }
  double waited_seconds() const override { return waited_seconds_; }

  std::unique_ptr<Pending> start_all_gather(const at::Tensor& out, const at::Tensor& mine,
                                            const std::string& what) override {
    at::Tensor output = out.view({-1}), input = mine.view({-1});
    c10d::Backend& backend = backend_for(output);
    if (!output.is_cpu() || output.nbytes() < kLargeGatherBytes) {
      return pending(what, [&] { return Works{backend._allgather_base(output, input)}; });
    }
    // Gloo's own all-gather receives into a temporary as large as `out` and copies; its broadcast works in place.
    std::vector<at::Tensor> parts = output.chunk(size());
    parts[static_cast<size_t>(rank())].copy_(input);
    return pending(what, [&] {
      Works works;
      for (int64_t from = 0; from < size(); ++from) {
        c10d::BroadcastOptions options;
        options.rootRank = from;
        std::vector<at::Tensor> part{parts[static_cast<size_t>(from)]};
        works.push_back(backend.broadcast(part, options));
      }
      return works;
    });
  }

  void broadcast(at::Tensor& tensor, int64_t from, const std::string& what) override {
    c10d::BroadcastOptions options;
    options.rootRank = from;
    std::vector<at::Tensor> tensors{tensor};
    c10d::Backend& backend = backend_for(tensor);
    pending(what, [&] { return Works{backend.broadcast(tensors, options)}; })->wait();
  }

  std::vector<at::Tensor> gather(const at::Tensor& mine, int64_t to, const std::string& what) override {
    c10d::GatherOptions options;
    options.rootRank = to;
    std::vector<at::Tensor> inputs{mine.contiguous()};
    std::vector<std::vector<at::Tensor>> outputs;
    if (rank() == to) {
      outputs.emplace_back();
      for (int64_t r = 0; r < size(); ++r) outputs.front().push_back(at::empty_like(inputs.front()));
    }
    pending(what, [&] { return Works{backend_->gather(outputs, inputs, options)}; })->wait();
    return outputs.empty() ? std::vector<at::Tensor>{} : outputs.front();
  }

  FirstFailure record_failure(int exit_code, bool lost_another) override {
    failed_ = true;
    // A store that was cut off may block for a quarter of an hour; this rank then speaks for itself.
    const auto word = std::make_shared<std::promise<FirstFailure>>();
    std::future<FirstFailure> first = word->get_future();
    std::thread([=, this] { word->set_value(agree_on_failure(exit_code, lost_another)); }).detach();
    if (first.wait_for(milliseconds(2.5 * kLastWordSeconds)) == std::future_status::ready) return first.get();
    return {true, exit_code};
  }

 private:
  FirstFailure agree_on_failure(int exit_code, bool lost_another) {
    FirstFailure first{true, exit_code};
    try {
      if (lost_another) wait_for_word();
      const std::string mine = std::to_string(rank()) + " " + std::to_string(exit_code);
      const std::string recorded = store_->compareSet(kFailureKey, "", mine);
      if (recorded != mine) first = {false, std::atoi(recorded.substr(recorded.find(' ') + 1).c_str())};
      store_->add(kEndedKey, 1);
      if (serves_store()) wait_for_the_others();
    } catch (const std::exception&) {
      // The store went away meanwhile.
    }
    return first;
  }

  using Works = std::vector<c10::intrusive_ptr<c10d::Work>>;
  class Collective : public Pending {
   public:
    Collective(C10dRanks& ranks, Works works, std::string what)
        : ranks_(ranks), works_(std::move(works)), what_(std::move(what)) {}
    void wait() override {
      for (const auto& work : works_) ranks_.wait(*work, what_);
    }

   private:
    C10dRanks& ranks_;
    const Works works_;
    const std::string what_;
  };

  template <class Start>
  std::unique_ptr<Pending> pending(const std::string& what, const Start& start) {
    try {
      return std::make_unique<Collective>(*this, start(), what);
    } catch (const std::exception& error) {
      throw_broken(what, reason_of(error));
    }
  }

  std::string self() const { return name_of(rank()); }
  std::string name_of(int64_t rank) const {
    const std::string& host = hosts_[static_cast<size_t>(rank)];
    return "rank " + std::to_string(rank) + (host.empty() ? "" : " on " + host);
  }
  std::string meeting_point() const { return place_.address + ":" + std::to_string(place_.port); }
  bool serves_store() const { return rank() == 0 && !place_.store_is_served; }

  void meet() {
    c10d::TCPStoreOptions options;
    options.port = static_cast<uint16_t>(place_.port);
    options.isServer = serves_store();
    options.waitWorkers = false;
    options.timeout = milliseconds(options_.rendezvous_seconds);
    try {
      store_ = c10::make_intrusive<c10d::PrefixStore>("dms" + place_.store_prefix,
                                                      c10::make_intrusive<c10d::TCPStore>(place_.address, options));
      store_->set(numbered("beat", rank()), "0");
      store_->set(numbered("host", rank()), hosts_[static_cast<size_t>(rank())]);
    } catch (const std::exception& error) {
      throw RankLost(serves_store()
                         ? "cannot serve the ranks' meeting point at " + meeting_point() + ": " + reason_of(error)
                         : "no meeting point of the ranks at " + meeting_point() + ": " + reason_of(error));
    }
    std::vector<std::string> keys;
    for (int64_t r = 0; r < size(); ++r) keys.push_back(numbered("host", r));
    try {
      store_->wait(keys, milliseconds(options_.rendezvous_seconds));
    } catch (const std::exception&) {
      std::string missing;
      for (int64_t r = 0; r < size(); ++r) {
        if (!store_->check({numbered("host", r)})) missing += (missing.empty() ? "" : ", ") + std::to_string(r);
      }
      throw RankLost("waited " + plain(options_.rendezvous_seconds) + " at " + meeting_point() + " for rank " +
                     missing + " of " + std::to_string(size()) + ", which did not appear");
    }
    for (int64_t r = 0; r < size(); ++r) hosts_[static_cast<size_t>(r)] = store_->get_to_str(numbered("host", r));
  }

  void connect() {
    const char* interface = std::getenv("GLOO_SOCKET_IFNAME");  // the name that PyTorch users know
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(options_.rendezvous_seconds));
    try {
      options->devices.push_back(interface != nullptr
                                     ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                                     : c10d::ProcessGroupGloo::createDeviceForHostname(own_address(place_)));
      backend_ = c10::make_intrusive<c10d::ProcessGroupGloo>(store_, static_cast<int>(rank()), static_cast<int>(size()),
                                                             options);
      backend_->setTimeout(milliseconds(options_.collective_seconds));
    } catch (const std::exception& error) {
      throw_broken("the other ranks' connections", reason_of(error));
    }
  }

  // Where a tensor travels.  All ranks first come here with a tensor on a GPU at the same collective.
  c10d::Backend& backend_for(const at::Tensor& tensor) {
    if (tensor.is_cpu()) return *backend_;
    if (device_backend_ == nullptr) {
      device_backend_ = make_nccl_backend(c10::make_intrusive<c10d::PrefixStore>("device", store_), rank(), size(),
                                          milliseconds(options_.collective_seconds));
    }
    return *device_backend_;
  }

  // After a failure its kernels may still spin for a rank that will never come.
  void leave_device_backend() {
    try {
      if (failed_) {
        device_backend_->abort();
      } else {
        device_backend_->shutdown();
      }
    } catch (const std::exception&) {
      // What there was to say has been said.
    }
  }

  // On return the collective is complete or, on a GPU, everything that is queued there from now on comes after it.
  void wait(c10d::Work& work, const std::string& what) {
    const auto begin = Clock::now();
    double looked = 0.0;
    for (double elapsed = 0.0; !work.isCompleted(); elapsed = seconds_since(begin)) {
      if (elapsed - looked > 0.1) {
        looked = elapsed;
        look_for_silence(what);
        if (elapsed > options_.collective_seconds) {
          throw_lost("waited " + plain(elapsed) + " for " + what + ", though every rank is alive");
        }
      }
      sleep_seconds(std::clamp(elapsed / 16.0, 20e-6, 1e-3));
    }
    try {
      if (const std::exception_ptr failure = work.exception()) std::rethrow_exception(failure);
      work.wait();
    } catch (const std::exception& error) {
      throw_broken(what, reason_of(error));
    }
    waited_seconds_ += seconds_since(begin);
  }

  void look_for_silence(const std::string& what) {
    std::vector<int64_t> silent;
    for (int64_t r = 0; r < size(); ++r) {
      if (r != rank() && beats_->silent_seconds(r) > options_.hang_seconds) silent.push_back(r);
    }
    if (silent.empty()) return;
    throw_lost(lost_message(what, silent, "no sign of life for " + plain(options_.hang_seconds)));
  }

  [[noreturn]] void throw_lost(const std::string& message) {
    failed_ = true;
    throw RankLost(message);
  }

  // The connection broke: whoever fell silent broke it.
  [[noreturn]] void throw_broken(const std::string& what, const std::string& reason) {
    std::vector<int64_t> silent;
    const auto begin = Clock::now();
    while (silent.empty() && seconds_since(begin) < kLastWordSeconds && !someone_left_word()) {
      sleep_seconds(0.05);
      for (int64_t r = 0; beats_ != nullptr && r < size(); ++r) {
        if (r != rank() && beats_->silent_seconds(r) > 4.0 * beats_->interval_seconds()) silent.push_back(r);
      }
    }
    throw_lost(lost_message(what, silent, reason));
  }

  std::string lost_message(const std::string& what, const std::vector<int64_t>& silent,
                           const std::string& reason) const {
    const int64_t others = size() - 1;
    std::string who;
    if (static_cast<int64_t>(silent.size()) >= others && !store_answers() && !serves_store()) {
      who = "the ranks' meeting point at " + meeting_point() + " and every other rank";
    } else {
      for (const int64_t r : silent) who += (who.empty() ? "" : ", ") + name_of(r);
    }
    return "lost " + (who.empty() ? "another rank" : who) + " while waiting for " + what + ": " + reason;
  }

  bool store_answers() const { return beats_ == nullptr || beats_->store_answers(); }
  bool someone_left_word() const {
    try {
      return store_answers() && store_->check({kFailureKey});
    } catch (const std::exception&) {
      return false;
    }
  }
  void wait_for_word() const {
    const auto begin = Clock::now();
    while (!someone_left_word() && seconds_since(begin) < kLastWordSeconds) sleep_seconds(0.05);
  }
  void wait_for_the_others() const {
    const auto begin = Clock::now();
    while (store_->add(kEndedKey, 0) < size() && seconds_since(begin) < kLastWordSeconds) sleep_seconds(0.02);
  }

  const LaunchPlace place_;
  const RankGroupOptions options_;
  std::vector<std::string> hosts_;
  StorePtr store_;
  std::unique_ptr<Heartbeats> beats_;
  c10::intrusive_ptr<c10d::Backend> backend_;         // tensors on the CPU
  c10::intrusive_ptr<c10d::Backend> device_backend_;  // on GPUs; from its first use on
  bool failed_ = false;                               // this rank, or it lost another
  double waited_seconds_ = 0.0;
};

class ServedStore : public RankStore {
 public:
  ServedStore() {
    c10d::TCPStoreOptions options;
    options.port = 0;
    options.isServer = true;
    options.waitWorkers = false;
    server_ = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
    store_ = c10::make_intrusive<c10d::PrefixStore>("dms", server_);
  }
  int port() const override { return server_->getPort(); }
  bool record_failure(int exit_code) override {
    const std::string mine = "- " + std::to_string(exit_code);
    return store_->compareSet(kFailureKey, "", mine) == mine;
  }

 private:
  c10::intrusive_ptr<c10d::TCPStore> server_;
  StorePtr store_;
};

}  // namespace

std::unique_ptr<RankGroup> join_ranks(const LaunchPlace& place, const RankGroupOptions& options) {
  if (place.size == 1) return single_rank();
  return std::make_unique<C10dRanks>(place, options);
}

std::unique_ptr<RankStore> serve_rank_store() { return std::make_unique<ServedStore>(); }

}  // namespace dms
