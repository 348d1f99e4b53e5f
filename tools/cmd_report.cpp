// dms report: parse, read, write one HTML file.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "data/staged_file.h"
#include "tools/commands.h"
#include "tools/report.h"
#include "tools/report_inference.h"

namespace dms {

void add_report(CLI::App& program) {
  struct Flags {
    std::string run, summary, out, name;
    std::vector<std::string> decode, tasks;
  };
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = program.add_subcommand("report", "Write one self-contained HTML page about a run");
  command->add_option("--run", flags->run, "Run directory that `dms train` made")->required()->type_name("DIR");
  command->add_option("--summary", flags->summary, "What `dms eval --json` wrote; without it those parts stay open")
      ->type_name("EVAL.json");
  command
      ->add_option("--decode", flags->decode, "What `dms bench decode --json` wrote; several contexts, several files")
      ->type_name("DECODE.json");
  command->add_option("--tasks", flags->tasks, "What `dms eval-tasks --out` wrote, a file a run")
      ->type_name("RESULTS.jsonl");
  command->add_option("--out", flags->out, "The page; default: report.html in the run directory")
      ->type_name("FILE.html");
  command->add_option("--name", flags->name, "The model's name in the page; default: the base model's")
      ->type_name("TEXT");
  command->footer("Example:\n  dms report --run quickstart/run --summary quickstart/summary.json --out report.html");
  command->callback([flags] {
    const std::string out = flags->out.empty() ? flags->run + "/report.html" : flags->out;
    ReportInput input = read_report_input(flags->run, flags->summary, flags->name);
    for (const std::string& path : flags->decode) {
      const std::vector<DecodePoint> points = read_decode_points(path);
      input.decode.insert(input.decode.end(), points.begin(), points.end());
    }
    for (const std::string& path : flags->tasks) {
      const std::vector<TaskPoint> points = read_task_points(path);
      input.tasks.insert(input.tasks.end(), points.begin(), points.end());
    }
    write_file(out, report_html(input));
    std::printf("wrote %s\n", out.c_str());
  });
}

}  // namespace dms
