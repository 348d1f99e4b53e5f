// Export target `sidecar`: adapters.safetensors and dms_config.json (checkpoints/adapter_file.h), nothing else.  The
// name and hash of the base model inside say which weights they belong to.
#pragma once

#include <string>

#include "checkpoints/export.h"

namespace dms {

void write_sidecar(const ExportInput& input, const std::string& dir);

}  // namespace dms
