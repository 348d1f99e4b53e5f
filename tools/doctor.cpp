#include "tools/doctor.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <fcntl.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/version.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "data/staged_file.h"
#include "model/attention.h"
#include "model/attention_reference.h"
#include "model/kv_cache.h"
#include "model/upload.h"
#include "tools/number_text.h"
#include "trainer/hardware.h"
#include "trainer/ranks.h"
#include "trainer/ranks_launcher.h"

namespace dms {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

#if defined(__clang__)
constexpr const char* kCompiler = "Clang " __clang_version__;
#else
constexpr const char* kCompiler = "GCC " __VERSION__;
#endif

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

std::string rate_text(double bytes_per_s) { return bytes_text(bytes_per_s) + "/s"; }

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown processor";
}

std::vector<at::Device> devices() {
  std::vector<at::Device> found{at::kCPU};
  if (at::hasCUDA()) {
    for (size_t i = 0; i < at::getNumGPUs(); ++i) found.emplace_back(at::kCUDA, static_cast<at::DeviceIndex>(i));
  }
  return found;
}

// In which a run may compute there: a GPU's flash attention has no float32.
std::vector<at::ScalarType> dtypes_of(at::Device device) {
  if (device.is_cuda()) return {at::kBFloat16};
  if (!cpu_computes_bfloat16()) return {at::kFloat};
  return {at::kFloat, at::kBFloat16};
}

// The largest difference, relative to the largest expected value.
double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  const at::Tensor a = actual.detach().to(at::kCPU, at::kDouble), e = expected.detach().to(at::kCPU, at::kDouble);
  if (!at::isfinite(a).all().item<bool>()) return std::numeric_limits<double>::infinity();
  return ((a - e).abs().max() / e.abs().max().clamp_min(1e-30)).item<double>();
}

// Output and all four gradients of delayed-eviction attention: a group of three query heads, two documents, keys kept,
// gone and in between, a length that is no multiple of a block.
double worst_attention_error(at::Device device, at::ScalarType dtype, AttentionPath path) {
  constexpr int64_t kQueryHeads = 6, kKvHeads = 2, kTokens = 331, kHeadDim = 64, kWindow = 33;
  const DocumentOffsets documents{0, 100, kTokens};
  const auto wave = [&](int64_t heads, int64_t dim, double frequency) {
    const at::Tensor t = at::arange(heads * kTokens * dim, at::kDouble);
    return at::sin(t * frequency + at::sin(t * 0.37)).view({1, heads, kTokens, dim}).to(dtype);
  };
  std::vector<at::Tensor> reference{wave(kQueryHeads, kHeadDim, 0.71), wave(kKvHeads, kHeadDim, 1.13),
                                    wave(kKvHeads, kHeadDim, 0.59)};
  const at::Tensor ramp_BGT = at::sin(at::arange(kKvHeads * kTokens, at::kFloat) * 0.9).view({1, kKvHeads, kTokens});
  reference.push_back(at::where(ramp_BGT > 0.6, at::full_like(ramp_BGT, kGoneBias),
                                at::where(ramp_BGT < -0.6, at::zeros_like(ramp_BGT), ramp_BGT - 1.0)));
  const at::Tensor dout_BHTd = wave(kQueryHeads, kHeadDim, 0.23);

  const at::AutoGradMode with_grad(true);
  std::vector<at::Tensor> tested;
  for (at::Tensor& input : reference) {
    tested.push_back(input.to(device).detach().set_requires_grad(true));
    input = (input.is_floating_point() ? input.to(at::kDouble) : input).detach().set_requires_grad(true);
  }
  const at::Tensor out =
      delayed_eviction_attention(tested[0], tested[1], tested[2], tested[3], kWindow, documents, path);
  const at::Tensor expected =
      dense_delayed_eviction_attention(reference[0], reference[1], reference[2], reference[3], kWindow, documents);
  const std::vector<at::Tensor> gradients = torch::autograd::grad({out}, tested, {dout_BHTd.to(device)});
  const std::vector<at::Tensor> expected_gradients =
      torch::autograd::grad({expected}, reference, {dout_BHTd.to(at::kDouble)});
  double worst = relative_error(out, expected);
  for (size_t i = 0; i < gradients.size(); ++i) {
    worst = std::max(worst, relative_error(gradients[i], expected_gradients[i]));
  }
  return worst;
}

// Decoding's attention: a token of each of two sequences over a cache of 200 keys that keeps all, and one that keeps the
// window.
double worst_decode_error(at::Device device, at::ScalarType dtype) {
  constexpr int64_t kQueryHeads = 6, kKvHeads = 2, kTokens = 200, kHeadDim = 64, kWindow = 33;
  const auto wave = [&](int64_t heads, double frequency) {
    const at::Tensor t = at::arange(heads * kTokens * kHeadDim, at::kDouble);
    return at::sin(t * frequency + at::sin(t * 0.37)).view({1, heads, kTokens, kHeadDim}).to(device, dtype);
  };
  const at::Tensor q = wave(kQueryHeads, 0.71), k = wave(kKvHeads, 1.13), v = wave(kKvHeads, 0.59);
  const auto pool = std::make_shared<KvPool>(kHeadDim, q.options(), fast_layout(device));
  std::vector<CompactCache> caches;
  std::vector<CompactCache*> batch;
  std::vector<at::Tensor> expected;
  for (const double decision : {-1.0, 1.0}) {
    caches.emplace_back(pool, 1, kKvHeads, kWindow, 0);
    const auto before = [](const at::Tensor& x) { return x.slice(2, 0, kTokens - 1); };
    caches.back().attend(0, before(q), before(k), before(v), at::full({kKvHeads, kTokens - 1}, decision));
    const at::Tensor bias_BGT = at::full({1, kKvHeads, kTokens}, decision > 0.0 ? kGoneBias : 0.0, at::kDouble);
    const auto reference = [](const at::Tensor& x) { return x.to(at::kCPU, at::kDouble); };
    expected.push_back(
        dense_delayed_eviction_attention(reference(q), reference(k), reference(v), bias_BGT, kWindow, {0, kTokens})
            .select(2, kTokens - 1));
  }
  for (CompactCache& cache : caches) batch.push_back(&cache);
  const auto newest = [](const at::Tensor& x) { return x.select(2, kTokens - 1).expand({2, x.size(1), x.size(3)}); };
  const at::Tensor out =
      CompactCache::attend_each(batch, 0, newest(q), newest(k), newest(v), at::full({kKvHeads, 2}, -1.0));
  return relative_error(out, at::cat(expected));
}

Check check_kernels(const std::string& name, at::Device device, at::ScalarType dtype,
                    const std::function<double()>& worst_error, const std::string& compared) {
  const bool low = dtype == at::kBFloat16;
  Check check{name + " on " + device.str() + ", " + (low ? "bfloat16" : "float32"), true, "", ""};
  const double allowed = low ? 3e-2 : 1e-4;
  try {
    check.value = worst_error();
    check.passed = check.value <= allowed;
    check.found = "largest error " + significant_text(check.value) + " of the dense reference" + compared;
    if (!check.passed) check.found += ", allowed " + significant_text(allowed);
  } catch (const std::exception& error) {
    check.passed = false;
    const std::string text = error.what();
    check.found = text.substr(0, text.find('\n'));
  }
  if (!check.passed) {
    check.remedy = device.is_cpu() ? "install the LibTorch version that this program was built with"
                                   : "update the driver; if it stays, this GPU's results cannot be trusted";
  }
  return check;
}

Check check_gemm(at::Device device) {
  const at::ScalarType dtype = dtypes_of(device).back();
  Check check{"matrix products", true, "", ""};
  if (device.is_cuda()) check.name += " on " + device.str();
  check.value = measure_gemm_flops_per_s(dtype, device);
  check.found = significant_text(check.value * 1e-9) + " GFLOP/s in " + (dtype == at::kFloat ? "float32" : "bfloat16");
  if (device.is_cpu()) check.found += " on " + std::to_string(at::get_num_threads()) + " threads";
  return check;
}

Check check_gpu_memory(at::Device device) {
  const auto [free_bytes, total_bytes] = c10::getDeviceAllocator(at::kCUDA)->getMemoryInfo(device.index());
  Check check{"memory of " + device.str(), true, "", "", static_cast<double>(free_bytes)};
  check.found = bytes_text(check.value) + " free of " + bytes_text(static_cast<double>(total_bytes));
  check.passed = free_bytes > total_bytes / 2;
  if (!check.passed) check.remedy = "another program holds much of it: nvidia-smi names it";
  return check;
}

// Weights that have no room on a GPU (placement: host) go there like this.
Check check_copies(at::Device device) {
  constexpr int64_t kBytes = int64_t{256} << 20;
  Check check{"copies from the host to " + device.str(), true, "", ""};
  const at::Tensor from = at::arange(kBytes / 8, at::kLong);
  const at::Tensor to = at::empty_like(from, from.options().device(device));
  Upload upload(device);
  for (int round = 0; round < 3; ++round) {
    to.zero_();
    synchronize(device);
    const auto begin = Clock::now();
    upload.begin();
    upload.copy(to, from);
    upload.end();
    upload.wait_on_device();
    synchronize(device);
    check.value = std::max(check.value, static_cast<double>(kBytes) / seconds_since(begin));
    check.passed = check.passed && to.equal(from.to(device));
  }
  check.found = rate_text(check.value) + (check.passed ? "" : ", and what arrived is not what was sent");
  if (!check.passed) check.remedy = "do not train on this machine: its memory, its bus or its driver is at fault";
  return check;
}

Check check_memory() {
  constexpr double kLeast = 2e9;
  Check check{"memory", true, "", "", static_cast<double>(available_memory_bytes())};
  check.found = bytes_text(check.value) + " free";
  check.passed = check.value >= kLeast;
  if (!check.passed)
    check.remedy = "close other programs: the smallest model of the quickstart needs " + bytes_text(kLeast);
  return check;
}

Check check_disk(const std::string& directory) {
  constexpr size_t kBytes = size_t{64} << 20;
  constexpr double kSlow = 10e6;
  Check check{"disk", true, "", ""};
  try {
    const std::string path = (fs::path(directory) / ("dms-doctor." + std::to_string(::getpid()))).string();
    const std::string block(kBytes, 'x');
    const auto begin = Clock::now();
    write_file(path, block);  // synced, as checkpoints are
    check.value = static_cast<double>(kBytes) / seconds_since(begin);
    fs::remove(path);
    check.found =
        rate_text(check.value) + " written and synced to " + fs::absolute(directory).lexically_normal().string();
    check.passed = check.value >= kSlow;
    if (!check.passed) check.remedy = "write runs to a faster disk: --run-dir, and --dir here";
  } catch (const std::exception& error) {
    check.passed = false;
    check.found = error.what();
    check.remedy = "name a directory that can be written to: --dir";
  }
  return check;
}

// Steps are timed by a clock that must not stand still or run backwards.
Check check_clock() {
  Check check{"clock", true, "", ""};
  const auto steady = Clock::now();
  const auto wall = std::chrono::system_clock::now();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const double difference =
      std::abs(seconds_since(steady) - std::chrono::duration<double>(std::chrono::system_clock::now() - wall).count());
  check.value = difference;
  check.passed = difference < 0.01;
  check.found = "monotonic and wall clock agree to " + significant_text(difference * 1e3) + " ms over 50 ms";
  if (!check.passed) check.remedy = "the wall clock jumped: let a time service slew it";
  return check;
}

Check check_link(bool on_gpus) {
  Check check{on_gpus ? "link between two GPUs" : "link between two ranks", true, "", ""};
  const std::string file = (fs::temp_directory_path() / ("dms-doctor-link." + std::to_string(::getpid()))).string();
  try {
    LaunchOptions launch;
    launch.num_ranks = 2;
    launch.arguments = {"doctor", "--as-rank", file};
    if (on_gpus) launch.arguments.push_back("--as-rank-on-gpu");
    launch.speaker = "dms doctor";
    const int code = launch_local_ranks(launch);
    if (code != 0) throw std::runtime_error("two ranks ended with exit code " + std::to_string(code));
    check.value = std::stod(read_file(file));
    check.found = rate_text(check.value) + " received by each rank of two in an all-gather";
  } catch (const std::exception& error) {
    check.passed = false;
    check.found = error.what();
    check.remedy = on_gpus ? "run again with NCCL_DEBUG=INFO, which says what NCCL tried"
                           : "ranks meet through TCP on 127.0.0.1: let no firewall or proxy forbid that";
  }
  std::error_code ignored;
  fs::remove(file, ignored);
  return check;
}

Check check_nccl() {
  Check check{"NCCL", true, nccl_version(), ""};
  if (check.found.empty()) {
    check.passed = false;
    check.found = "not in this build: ranks cannot share weights (placement: shard) on these GPUs";
    check.remedy = "configure and build where nccl.h is found (the PyPI wheel nvidia-nccl-cu13, or libnccl-dev)";
  }
  return check;
}

}  // namespace

std::vector<Check> examine(const DoctorOptions& options) {
  std::vector<Check> checks;
  checks.push_back({"program", true, options.version + ", compiled by " + kCompiler, ""});
  checks.push_back({"LibTorch", true, TORCH_VERSION, ""});
  checks.push_back({"processor", true,
                    processor_name() + ", " + std::to_string(std::thread::hardware_concurrency()) + " threads, " +
                        (cpu_computes_bfloat16() ? "with" : "without") + " bfloat16 instructions",
                    ""});
  const std::vector<at::Device> all = devices();
  checks.push_back(
      {"GPUs", true,
       all.size() == 1 ? "none: everything runs on the processor" : std::to_string(all.size() - 1) + " visible", ""});
  checks.push_back(check_memory());
  for (const at::Device device : all) {
    if (device.is_cuda()) {
      checks.push_back(check_gpu_memory(device));
      checks.push_back(check_copies(device));
    }
    checks.push_back(check_gemm(device));
  }
  checks.push_back(check_disk(options.directory));
  checks.push_back(check_clock());
  checks.push_back(check_link(/*on_gpus=*/false));
  if (all.size() > 2) {
    checks.push_back(check_nccl());
    if (checks.back().passed) checks.push_back(check_link(/*on_gpus=*/true));
  }
  for (const at::Device device : all) {
    for (const at::ScalarType dtype : dtypes_of(device)) {
      const auto training = [&] {
        return std::max(worst_attention_error(device, dtype, AttentionPath::dense),
                        worst_attention_error(device, dtype, AttentionPath::sparse));
      };
      checks.push_back(check_kernels("attention", device, dtype, training, ", output and gradients"));
      const auto decoding = [&] { return worst_decode_error(device, dtype); };
      checks.push_back(check_kernels("decoding", device, dtype, decoding, ", two sequences"));
    }
  }
  return checks;
}

void measure_link_as_rank(const std::string& file, bool on_gpu) {
  constexpr int64_t kBytes = int64_t{16} << 20;
  constexpr int kRounds = 5;
  const std::unique_ptr<RankGroup> ranks = join_ranks(read_launch_place(current_environment()), {});
  const at::Device device =
      on_gpu ? at::Device(at::kCUDA, static_cast<at::DeviceIndex>(ranks->rank())) : at::Device(at::kCPU);
  const auto bytes = at::TensorOptions(device).dtype(at::kByte);
  const at::Tensor mine = at::full({kBytes}, ranks->rank() + 1, bytes), out = at::empty({ranks->size(), kBytes}, bytes);
  double best_seconds = 1e30;
  for (int round = 0; round < kRounds; ++round) {
    out.zero_();
    synchronize(device);
    ranks->barrier("the doctor's round");
    const auto begin = Clock::now();
    ranks->start_all_gather(out, mine, "the doctor's all-gather")->wait();
    best_seconds = std::min(best_seconds, seconds_since(begin));
    for (int64_t r = 0; r < ranks->size(); ++r) {
      if (!(out[r] == r + 1).all().item<bool>()) {
        throw std::runtime_error("rank " + std::to_string(ranks->rank()) + " did not receive what rank " +
                                 std::to_string(r) + " sent");
      }
    }
  }
  if (ranks->speaks()) {
    write_file(file, std::to_string(static_cast<double>((ranks->size() - 1) * kBytes) / best_seconds));
  }
  ranks->barrier("the doctor's end");
}

}  // namespace dms
