// Exports: a trained evictor in the layout of a tool that runs it.  A target is a name, the reasons why its layout
// cannot hold some adapters, and a function that fills a directory; export.cpp has the list of them.
// Adding a target: one file export_NAME.{h,cpp} with these functions, and one line in that list.
#pragma once

#include <string>
#include <vector>

#include "checkpoints/adapter_file.h"
#include "model/architecture.h"

namespace dms {

struct ExportInput {
  std::string model_dir;      // the base model
  std::string adapters_dir;   // a run, a checkpoint or an adapter directory
  Architecture architecture;  // of its weights: open_weights()->architecture()
  AdapterFile adapters;
  std::string evaluation;  // `dms eval --json` output whose figures go into the README; "" = none
};

struct ExportTarget {
  std::string name;
  std::string help;  // what is written, for whom
  // Why this layout cannot hold these adapters and which option of training makes it possible, "" when it can.  A
  // recipe asks before anything is trained, with no tensors but those that are settled then; what only luck could make
  // fit is an objection there.
  std::string (*objection)(const Architecture& architecture, const AdapterFile& adapters);
  // Fills `dir`, which exists and is empty.
  void (*write)(const ExportInput& input, const std::string& dir);
};

const std::vector<ExportTarget>& export_targets();
// Throws UserError naming the targets there are.
const ExportTarget& find_export_target(const std::string& name);

// Reads the base model and the adapters.  `check_base`: by its hash, the model must be the one that the adapters were
// trained on.  Throws UserError.
ExportInput read_export_input(const std::string& model_dir, const std::string& adapters_dir, bool check_base = true);

// Writes the directory `out`, which appears whole or not at all.  `replace`: an existing one may be replaced, unless
// the input is in it.
// Throws UserError, IoError.
void write_export(const ExportTarget& target, const ExportInput& input, const std::string& out, bool replace);

}  // namespace dms
