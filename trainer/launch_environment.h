// Which rank this process is, from the environment that torchrun, Open MPI, MPICH or Slurm gave it.
// Precedence: RANK and WORLD_SIZE, then OMPI_*, then PMI_*, then Slurm (only inside srun: an sbatch shell has the same
// variables).  A set that is there in part is an error that names what is missing.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace dms {

struct LaunchPlace {
  int64_t rank = 0, size = 1;
  int64_t local_rank = 0, local_size = 1;
  std::string address;  // where rank 0 can be reached
  int64_t port = 0;
  bool store_is_served = false;    // by the launcher: rank 0 connects like the others
  std::string store_prefix;        // tells one incarnation of a restarted run from the next
  std::string launcher = "alone";  // as a message names it
};

using EnvironmentVariables = std::map<std::string, std::string>;
EnvironmentVariables current_environment();

// Throws UserError.
LaunchPlace read_launch_place(const EnvironmentVariables& environment);

// Slurm's "gnode[10,20-25],login1" and "4(x2),3", expanded.  Throw UserError.
std::vector<std::string> expand_node_list(const std::string& list);
std::vector<int64_t> expand_tasks_per_node(const std::string& list);

}  // namespace dms
