// The files of tools/report/, embedded when the program is built (tools/cmake/EmbedText.cmake).
#pragma once

#include <string_view>

namespace dms {

extern const std::string_view kReportPage;
extern const std::string_view kReportStyle;
extern const std::string_view kReportScript;

}  // namespace dms
