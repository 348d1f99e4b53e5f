#include "trainer/launch_environment.h"

#include <gtest/gtest.h>

#include "tests/support/user_error_of.h"

namespace dms {
namespace {

std::string problem_of(const EnvironmentVariables& environment) {
  return user_error_of([&] { read_launch_place(environment); });
}

EnvironmentVariables with(EnvironmentVariables variables, const EnvironmentVariables& more) {
  for (const auto& [name, value] : more) variables[name] = value;
  return variables;
}

const EnvironmentVariables kTorchrun = {{"RANK", "5"},
                                        {"WORLD_SIZE", "8"},
                                        {"LOCAL_RANK", "1"},
                                        {"LOCAL_WORLD_SIZE", "4"},
                                        {"MASTER_ADDR", "node-a"},
                                        {"MASTER_PORT", "1234"}};
const EnvironmentVariables kOpenMpi = {{"OMPI_COMM_WORLD_RANK", "1"},
                                       {"OMPI_COMM_WORLD_SIZE", "2"},
                                       {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                                       {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}};
const EnvironmentVariables kSlurm = {{"SLURM_PROCID", "9"},
                                     {"SLURM_NTASKS", "11"},
                                     {"SLURM_LOCALID", "1"},
                                     {"SLURM_NODEID", "2"},
                                     {"SLURM_TASKS_PER_NODE", "4(x2),3"},
                                     {"SLURM_STEP_NODELIST", "gnode[07,10-12],login1"},
                                     {"SLURM_JOB_ID", "45678"},
                                     {"SLURM_STEP_ID", "0"}};

TEST(LaunchEnvironment, WithoutALauncherIsAlone) {
  const LaunchPlace place = read_launch_place({{"HOME", "/root"}});
  EXPECT_EQ(place.size, 1);
  EXPECT_EQ(place.launcher, "alone");
}

TEST(LaunchEnvironment, ReadsTorchrun) {
  const LaunchPlace place = read_launch_place(kTorchrun);
  EXPECT_EQ(place.rank, 5);
  EXPECT_EQ(place.size, 8);
  EXPECT_EQ(place.local_rank, 1);
  EXPECT_EQ(place.local_size, 4);
  EXPECT_EQ(place.address, "node-a");
  EXPECT_EQ(place.port, 1234);
  EXPECT_FALSE(place.store_is_served);
  EXPECT_TRUE(read_launch_place(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "True"}})).store_is_served);
  EXPECT_FALSE(read_launch_place(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "False"}})).store_is_served);
}

TEST(LaunchEnvironment, ReadsOpenMpiAndNeedsAnAddressAcrossHosts) {
  const LaunchPlace place = read_launch_place(kOpenMpi);
  EXPECT_EQ(place.rank, 1);
  EXPECT_EQ(place.address, "127.0.0.1");
  EXPECT_EQ(place.port, 29500);
  const EnvironmentVariables two_hosts =
      with(kOpenMpi, {{"OMPI_COMM_WORLD_LOCAL_RANK", "0"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}});
  EXPECT_TRUE(says(problem_of(two_hosts), "MASTER_ADDR: is not set in the environment, and Open MPI names no address"));
  EXPECT_EQ(read_launch_place(with(two_hosts, {{"MASTER_ADDR", "node-a"}})).address, "node-a");
}

TEST(LaunchEnvironment, ReadsMpich) {
  const LaunchPlace place =
      read_launch_place({{"PMI_RANK", "1"}, {"PMI_SIZE", "4"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "4"}});
  EXPECT_EQ(place.rank, 1);
  EXPECT_EQ(place.size, 4);
}

TEST(LaunchEnvironment, ReadsSlurmInsideAStepOnly) {
  const LaunchPlace place = read_launch_place(kSlurm);
  EXPECT_EQ(place.rank, 9);
  EXPECT_EQ(place.size, 11);
  EXPECT_EQ(place.local_rank, 1);
  EXPECT_EQ(place.local_size, 3);
  EXPECT_EQ(place.address, "gnode07");
  EXPECT_EQ(place.port, 10000 + 45678 % 20000);
  EnvironmentVariables batch_script = kSlurm;
  batch_script.erase("SLURM_STEP_ID");
  EXPECT_EQ(read_launch_place(batch_script).size, 1);
  EXPECT_EQ(read_launch_place(with(kSlurm, {{"SLURM_NTASKS", "1"}})).size, 1);
}

TEST(LaunchEnvironment, TorchrunWinsOverOpenMpiOverSlurm) {
  EXPECT_EQ(read_launch_place(with(with(kSlurm, kOpenMpi), kTorchrun)).launcher, "torchrun");
  EXPECT_EQ(read_launch_place(with(kSlurm, kOpenMpi)).launcher, "Open MPI");
  // srun sets PMI's variables for its tasks too.
  EXPECT_EQ(read_launch_place(with(kSlurm, {{"PMI_RANK", "0"}, {"PMI_SIZE", "1"}})).launcher, "Slurm");
}

TEST(LaunchEnvironment, HalfASetNamesWhatIsMissing) {
  EXPECT_TRUE(says(problem_of({{"RANK", "0"}}), "WORLD_SIZE: is not set in the environment, but RANK is"));
  EXPECT_TRUE(says(problem_of({{"WORLD_SIZE", "2"}}), "RANK: is not set in the environment, but WORLD_SIZE is"));
  EXPECT_TRUE(says(problem_of({{"RANK", "0"}, {"WORLD_SIZE", "2"}}), "MASTER_ADDR: is not set"));
  EnvironmentVariables half = kTorchrun;
  half.erase("LOCAL_WORLD_SIZE");
  EXPECT_TRUE(says(problem_of(half), "LOCAL_WORLD_SIZE: is not set in the environment, but LOCAL_RANK is"));
  EXPECT_TRUE(says(problem_of({{"OMPI_COMM_WORLD_RANK", "0"}}), "OMPI_COMM_WORLD_SIZE: is not set"));
}

TEST(LaunchEnvironment, RejectsRanksThatCannotBe) {
  EXPECT_TRUE(says(problem_of(with(kTorchrun, {{"RANK", "8"}})), "RANK: is 8, but there are only 8 ranks"));
  EXPECT_TRUE(says(problem_of(with(kTorchrun, {{"RANK", "one"}})), "RANK: is 'one' in the environment"));
  EXPECT_TRUE(says(problem_of(with(kTorchrun, {{"LOCAL_RANK", "4"}})), "LOCAL_RANK: is 4, but this host has 4"));
  EXPECT_TRUE(says(problem_of(with(kTorchrun, {{"MASTER_PORT", "0"}})), "MASTER_PORT: is '0'"));
}

TEST(LaunchEnvironment, ExpandsNodeLists) {
  EXPECT_EQ(expand_node_list("gnode[10,20-22],login1"),
            (std::vector<std::string>{"gnode10", "gnode20", "gnode21", "gnode22", "login1"}));
  EXPECT_EQ(expand_node_list("n[001-003]"), (std::vector<std::string>{"n001", "n002", "n003"}));
  EXPECT_EQ(expand_node_list("n[8-11]"), (std::vector<std::string>{"n8", "n9", "n10", "n11"}));
  EXPECT_EQ(expand_node_list("one"), (std::vector<std::string>{"one"}));
  for (const char* wrong : {"", "n[1-", "n[]", "n[3-1]", "n[a]", ",", "n[1]x"}) {
    EXPECT_TRUE(says(user_error_of([&] { expand_node_list(wrong); }), "cannot be read")) << wrong;
  }
}

TEST(LaunchEnvironment, ExpandsTasksPerNode) {
  EXPECT_EQ(expand_tasks_per_node("4(x2),3"), (std::vector<int64_t>{4, 4, 3}));
  EXPECT_EQ(expand_tasks_per_node("8"), (std::vector<int64_t>{8}));
  for (const char* wrong : {"", "4(x", "x", "0", "4(x0)"}) {
    EXPECT_TRUE(says(user_error_of([&] { expand_tasks_per_node(wrong); }), "cannot be read")) << wrong;
  }
}

}  // namespace
}  // namespace dms
