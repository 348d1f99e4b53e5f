// dms doctor: parse, examine, print.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "data/staged_file.h"
#include "tools/commands.h"
#include "tools/doctor.h"
#include "tools/exit_code.h"

namespace dms {

namespace {

struct DoctorFlags {
  DoctorOptions options;
  std::string json, as_rank;
  bool as_rank_on_gpu = false;
};

void run_doctor(const DoctorFlags& flags) {
  if (!flags.as_rank.empty()) return measure_link_as_rank(flags.as_rank, flags.as_rank_on_gpu);
  DoctorOptions options = flags.options;
  options.version = "dms " DMS_VERSION;
  const std::vector<Check> checks = examine(options);
  const bool passed = std::all_of(checks.begin(), checks.end(), [](const Check& check) { return check.passed; });
  nlohmann::ordered_json json = {{"passed", passed}, {"checks", nlohmann::ordered_json::array()}};
  for (const Check& check : checks) {
    std::printf("%-4s %s: %s\n", check.passed ? "ok" : "FAIL", check.name.c_str(), check.found.c_str());
    if (!check.passed) std::printf("     %s\n", check.remedy.c_str());
    nlohmann::ordered_json record = {{"name", check.name}, {"passed", check.passed}, {"found", check.found}};
    if (check.value >= 0.0) record["value"] = check.value;
    if (!check.passed) record["remedy"] = check.remedy;
    json["checks"].push_back(record);
  }
  if (!flags.json.empty()) write_file(flags.json, json.dump(2) + "\n");
  if (!passed) {
    std::fflush(stdout);
    throw QuietExit{kExitFailed};
  }
}

}  // namespace

void add_doctor(CLI::App& program) {
  const auto flags = std::make_shared<DoctorFlags>();
  CLI::App* command =
      program.add_subcommand("doctor", "Check this machine: versions, devices, speed, and every kernel's results.");
  command->add_option("--dir", flags->options.directory, "Directory whose disk is timed")
      ->type_name("DIR")
      ->capture_default_str();
  command->add_option("--json", flags->json, "Also write the findings to this file")->type_name("FILE");
  command->add_option("--as-rank", flags->as_rank)->group("");  // how it starts itself for the link
  command->add_flag("--as-rank-on-gpu", flags->as_rank_on_gpu)->group("");
  command->footer(
      "Example:\n  dms doctor --json doctor.json\n\nExit code 1 when a check fails; its remedy is printed.");
  command->callback([flags] { run_doctor(*flags); });
}

}  // namespace dms
