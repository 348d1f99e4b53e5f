// The text files of templates/ that exports contain, compiled into the program.
#pragma once

#include <string_view>

namespace dms {

extern const std::string_view kHfConfigurationPy;
extern const std::string_view kHfCachePy;
extern const std::string_view kHfModelingPy;
extern const std::string_view kKvpressPy;
// Model cards, filled in by model_card.h.
extern const std::string_view kHfReadme;
extern const std::string_view kNvidiaReadme;
extern const std::string_view kFastdmsReadme;
extern const std::string_view kKvpressReadme;

}  // namespace dms
