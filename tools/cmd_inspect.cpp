// dms inspect: parse, describe, print.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "data/staged_file.h"
#include "tools/commands.h"
#include "tools/inspect.h"

namespace dms {

void add_inspect(CLI::App& program) {
  struct Flags {
    std::string path, json;
  };
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = program.add_subcommand("inspect", "Say what a model, token file, run, checkpoint or export is");
  command->add_option("path", flags->path, "What to look at")->required()->type_name("PATH");
  command->add_option("--json", flags->json, "Also write the description as JSON")->type_name("FILE");
  command->footer("Example:\n  dms inspect quickstart/run");
  command->callback([flags] {
    const nlohmann::ordered_json description = inspect(flags->path);
    if (!flags->json.empty())
      write_file(flags->json, description.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
    std::fputs(description_text(description).c_str(), stdout);
  });
}

}  // namespace dms
