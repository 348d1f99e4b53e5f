// dms report: parse, read, write one HTML file.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <memory>

#include "data/staged_file.h"
#include "tools/commands.h"
#include "tools/report.h"

namespace dms {

void add_report(CLI::App& program) {
  struct Flags {
    std::string run, summary, out, name;
  };
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = program.add_subcommand("report", "Write one self-contained HTML page about a run");
  command->add_option("--run", flags->run, "Run directory that `dms train` made")->required()->type_name("DIR");
  command->add_option("--summary", flags->summary, "What `dms eval --json` wrote; without it those parts stay open")
      ->type_name("EVAL.json");
  command->add_option("--out", flags->out, "The page; default: report.html in the run directory")
      ->type_name("FILE.html");
  command->add_option("--name", flags->name, "The model's name in the page; default: the base model's")
      ->type_name("TEXT");
  command->footer("Example:\n  dms report --run quickstart/run --summary quickstart/summary.json --out report.html");
  command->callback([flags] {
    const std::string out = flags->out.empty() ? flags->run + "/report.html" : flags->out;
    write_file(out, report_html(read_report_input(flags->run, flags->summary, flags->name)));
    std::printf("wrote %s\n", out.c_str());
  });
}

}  // namespace dms
