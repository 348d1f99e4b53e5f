// Numbers as people read them, in reports and on the terminal.  All take any value: one that is not finite becomes "–".
#pragma once

#include <cstdint>
#include <string>

namespace dms {

std::string count_text(int64_t count);                           // 98,304
std::string significant_text(double value, int num_digits = 3);  // 0.0962, 12.3, 1,024, 2.1e-5
std::string percent_text(double share);                          // 87.5%, 0.3%, 100%
std::string bytes_text(double num_bytes);                        // 1.35 MiB
std::string duration_text(double seconds);                       // 8.5 s, 14 min 3 s, 1 h 5 min
std::string parameters_text(int64_t count);                      // 134.5M, 8.19B

}  // namespace dms
