#include "checkpoints/export_sidecar.h"

namespace dms {

void write_sidecar(const ExportInput& input, const std::string& dir) { write_adapter_file(dir, input.adapters); }

}  // namespace dms
