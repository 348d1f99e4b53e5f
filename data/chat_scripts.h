// The Python that renders chat templates, compiled into the program (data/templates/).
#pragma once

#include <string_view>

namespace dms {

extern const std::string_view kRenderChatPy;

}  // namespace dms
