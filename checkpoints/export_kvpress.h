// Export target `kvpress`: a trained evictor as a press of KVPress (github.com/NVIDIA/kvpress; PyPI kvpress): the two
// files of an adapter directory and one Python file, dms_kvpress.py, that reads them from beside itself.  KVPress hooks
// into the base model, which is not included.  Decisions of shift 1, biases per head and borrowed channels at an angle
// are all expressed by the Python code; what a hook on projections cannot do is to zero a channel after RoPE.
#pragma once

#include <string>

#include "checkpoints/export.h"

namespace dms {

std::string kvpress_objection(const Architecture& architecture, const AdapterFile& adapters);
void write_kvpress(const ExportInput& input, const std::string& dir);

}  // namespace dms
