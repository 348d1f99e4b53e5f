// tools/transformers_decode.py, carried by the program.
#pragma once

#include <string_view>

namespace dms {

extern const std::string_view kTransformersDecodePy;

}  // namespace dms
