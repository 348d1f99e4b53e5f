#include "trainer/launch_environment.h"

#include <unistd.h>

#include <charconv>
#include <optional>

#include "recipes/user_error.h"

extern char** environ;

namespace dms {

namespace {

constexpr int64_t kTorchrunPort = 29500;
constexpr int64_t kSlurmFirstPort = 10000, kSlurmPorts = 20000;

std::optional<int64_t> parse_number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

class Variables {
 public:
  explicit Variables(const EnvironmentVariables& environment) : environment_(environment) {}

  bool has(const std::string& name) const { return environment_.contains(name) && !environment_.at(name).empty(); }
  std::string text(const std::string& name, const std::string& otherwise = "") const {
    return has(name) ? environment_.at(name) : otherwise;
  }
  int64_t number(const std::string& name, int64_t least) const {
    const std::optional<int64_t> value = parse_number(text(name));
    if (!value || *value < least) {
      throw UserError(name, "is " + in_quotes(text(name)) + " in the environment",
                      {"expected a whole number of at least " + std::to_string(least)});
    }
    return *value;
  }
  int64_t number(const std::string& name, int64_t least, int64_t otherwise) const {
    return has(name) ? number(name, least) : otherwise;
  }

  // All of the set or none: true when all are there.
  bool has_all(const std::vector<std::string>& names, const std::string& launcher) const {
    std::vector<std::string> missing;
    for (const std::string& name : names) {
      if (!has(name)) missing.push_back(name);
    }
    if (missing.size() == names.size()) return false;
    if (missing.empty()) return true;
    std::string listed = missing.front();
    for (size_t i = 1; i < missing.size(); ++i) listed += ", " + missing[i];
    const std::string& present = has(names.front()) ? names.front() : names.back();
    throw UserError(listed, "is not set in the environment, but " + present + " is",
                    {"a launcher like " + launcher + " sets both", "unset " + present + " to train in one process"});
  }

 private:
  static std::string in_quotes(const std::string& text) { return "'" + text + "'"; }
  const EnvironmentVariables& environment_;
};

void check(const LaunchPlace& place, const std::string& rank_name, const std::string& local_name) {
  if (place.rank >= place.size) {
    throw UserError(rank_name, "is " + std::to_string(place.rank) + ", but there are only " +
                                   std::to_string(place.size) + " ranks, counted from 0");
  }
  if (place.local_rank >= place.local_size || place.local_size > place.size) {
    throw UserError(local_name, "is " + std::to_string(place.local_rank) + ", but this host has " +
                                    std::to_string(place.local_size) + " of the " + std::to_string(place.size) +
                                    " ranks");
  }
}

LaunchPlace from_torchrun(const Variables& variables) {
  LaunchPlace place;
  place.launcher = "torchrun";
  place.rank = variables.number("RANK", 0);
  place.size = variables.number("WORLD_SIZE", 1);
  // Kubernetes operators start one process a host and name no local rank.
  if (variables.has_all({"LOCAL_RANK", "LOCAL_WORLD_SIZE"}, "torchrun")) {
    place.local_rank = variables.number("LOCAL_RANK", 0);
    place.local_size = variables.number("LOCAL_WORLD_SIZE", 1);
  }
  if (place.size > 1 && !variables.has("MASTER_ADDR")) {
    throw UserError("MASTER_ADDR", "is not set in the environment, but WORLD_SIZE is",
                    {"set it to the host of rank 0, or launch with torchrun, which does"});
  }
  place.address = variables.text("MASTER_ADDR");
  place.port = variables.number("MASTER_PORT", 1, kTorchrunPort);
  place.store_is_served = variables.text("TORCHELASTIC_USE_AGENT_STORE") == "True";
  place.store_prefix = variables.text("TORCHELASTIC_RESTART_COUNT");
  check(place, "RANK", "LOCAL_RANK");
  return place;
}

struct MpiNames {
  std::string launcher, rank, size, local_rank, local_size;
};

LaunchPlace from_mpi(const Variables& variables, const MpiNames& names) {
  LaunchPlace place;
  place.launcher = names.launcher;
  place.rank = variables.number(names.rank, 0);
  place.size = variables.number(names.size, 1);
  place.local_size = place.size;
  place.local_rank = place.rank;
  if (variables.has_all({names.local_rank, names.local_size}, names.launcher)) {
    place.local_rank = variables.number(names.local_rank, 0);
    place.local_size = variables.number(names.local_size, 1);
  }
  if (place.size > place.local_size && !variables.has("MASTER_ADDR")) {
    throw UserError("MASTER_ADDR", "is not set in the environment, and " + names.launcher + " names no address",
                    {"set it to the host of rank 0: the ranks are on several hosts"});
  }
  place.address = variables.text("MASTER_ADDR", "127.0.0.1");
  place.port = variables.number("MASTER_PORT", 1, kTorchrunPort);
  check(place, names.rank, names.local_rank);
  return place;
}

LaunchPlace from_slurm(const Variables& variables) {
  LaunchPlace place;
  place.launcher = "Slurm";
  place.rank = variables.number("SLURM_PROCID", 0);
  place.size = variables.number("SLURM_NTASKS", 1);
  place.local_rank = variables.number("SLURM_LOCALID", 0);
  const std::vector<int64_t> tasks = expand_tasks_per_node(
      variables.text("SLURM_STEP_TASKS_PER_NODE", variables.text("SLURM_TASKS_PER_NODE", std::to_string(place.size))));
  const int64_t node = variables.number("SLURM_NODEID", 0, 0);
  if (node >= static_cast<int64_t>(tasks.size())) {
    throw UserError("SLURM_NODEID", "is " + std::to_string(node) + ", but SLURM_TASKS_PER_NODE has " +
                                        std::to_string(tasks.size()) + " nodes");
  }
  place.local_size = tasks[static_cast<size_t>(node)];
  place.address = variables.text("MASTER_ADDR");
  if (place.address.empty()) {
    const std::string nodes = variables.text("SLURM_STEP_NODELIST", variables.text("SLURM_JOB_NODELIST"));
    if (nodes.empty()) {
      throw UserError("SLURM_STEP_NODELIST",
                      "is not set in the environment, nor are SLURM_JOB_NODELIST and MASTER_ADDR",
                      {"set MASTER_ADDR to the host of rank 0"});
    }
    place.address = expand_node_list(nodes).front();
  }
  place.port =
      variables.number("MASTER_PORT", 1, kSlurmFirstPort + variables.number("SLURM_JOB_ID", 0, 0) % kSlurmPorts);
  check(place, "SLURM_PROCID", "SLURM_LOCALID");
  return place;
}

[[noreturn]] void reject_list(const std::string& variable, const std::string& list) {
  throw UserError(variable, "cannot be read: '" + list + "'", {"set MASTER_ADDR to the host of rank 0"});
}

// "10,20-25" with leading zeros kept, after `prefix`.
void expand_numbers(const std::string& list, const std::string& prefix, std::string_view numbers,
                    std::vector<std::string>& names) {
  while (!numbers.empty()) {
    const size_t comma = numbers.find(',');
    const std::string_view range = numbers.substr(0, comma);
    numbers.remove_prefix(comma == std::string_view::npos ? numbers.size() : comma + 1);
    const size_t dash = range.find('-');
    const std::string_view first = range.substr(0, dash);
    const std::optional<int64_t> begin = parse_number(first);
    const std::optional<int64_t> end = dash == std::string_view::npos ? begin : parse_number(range.substr(dash + 1));
    if (!begin || !end || *begin < 0 || *end < *begin || *end - *begin > 100000) reject_list("SLURM_NODELIST", list);
    for (int64_t i = *begin; i <= *end; ++i) {
      std::string digits = std::to_string(i);
      digits.insert(0, first.size() > digits.size() ? first.size() - digits.size() : 0, '0');
      names.push_back(prefix + digits);
    }
  }
}

}  // namespace

EnvironmentVariables current_environment() {
  EnvironmentVariables variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string_view::npos) variables.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return variables;
}

LaunchPlace read_launch_place(const EnvironmentVariables& environment) {
  const Variables variables(environment);
  if (variables.has_all({"RANK", "WORLD_SIZE"}, "torchrun")) return from_torchrun(variables);
  for (const MpiNames& names : {MpiNames{"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                                         "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"},
                                MpiNames{"MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE",
                                         "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"},
                                MpiNames{"MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"}}) {
    // srun sets PMI_* for every task, a lone one too; Slurm's own variables then say more.
    if (names.launcher == "MPICH" && variables.has("SLURM_STEP_ID")) continue;
    if (variables.has_all({names.rank, names.size}, names.launcher)) return from_mpi(variables, names);
  }
  if (variables.has("SLURM_STEP_ID") && variables.number("SLURM_NTASKS", 1, 1) > 1) return from_slurm(variables);
  return {};
}

std::vector<std::string> expand_node_list(const std::string& list) {
  std::vector<std::string> names;
  size_t begin = 0;
  while (begin < list.size()) {
    size_t end = begin;
    for (bool inside = false; end < list.size() && (inside || list[end] != ','); ++end) {
      if (list[end] == '[') inside = true;
      if (list[end] == ']') inside = false;
    }
    const std::string group = list.substr(begin, end - begin);
    begin = end + 1;
    const size_t open = group.find('[');
    if (open == std::string::npos) {
      if (group.empty()) reject_list("SLURM_NODELIST", list);
      names.push_back(group);
      continue;
    }
    if (group.back() != ']' || open + 2 >= group.size()) reject_list("SLURM_NODELIST", list);
    expand_numbers(list, group.substr(0, open), std::string_view(group).substr(open + 1, group.size() - open - 2),
                   names);
  }
  if (names.empty()) reject_list("SLURM_NODELIST", list);
  return names;
}

std::vector<int64_t> expand_tasks_per_node(const std::string& list) {
  std::vector<int64_t> tasks;
  std::string_view rest = list;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    std::string_view group = rest.substr(0, comma);
    rest.remove_prefix(comma == std::string_view::npos ? rest.size() : comma + 1);
    std::optional<int64_t> repeat = 1;
    if (const size_t open = group.find("(x"); open != std::string_view::npos && group.ends_with(')')) {
      repeat = parse_number(group.substr(open + 2, group.size() - open - 3));
      group = group.substr(0, open);
    }
    const std::optional<int64_t> count = parse_number(group);
    if (!count || !repeat || *count < 1 || *repeat < 1 || *repeat > 100000) {
      reject_list("SLURM_TASKS_PER_NODE", list);
    }
    tasks.insert(tasks.end(), static_cast<size_t>(*repeat), *count);
  }
  if (tasks.empty()) reject_list("SLURM_TASKS_PER_NODE", list);
  return tasks;
}

}  // namespace dms
