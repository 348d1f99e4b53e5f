// The text files of templates/ that exports contain, compiled into the program.
#pragma once

#include <string_view>

namespace dms {

extern const std::string_view kHfConfigurationPy;
extern const std::string_view kHfCachePy;
extern const std::string_view kHfModelingPy;
extern const std::string_view kHfReadme;  // with @NAME@ where export_hf.cpp puts values

}  // namespace dms
