// What an exception means to whoever started the program: 0 done; 1 failed while running; 2 the user's input is wrong;
// 3 stopped by a signal after saving.
#pragma once

#include <exception>
#include <string>

namespace dms {

inline constexpr int kExitDone = 0, kExitFailed = 1, kExitWrongInput = 2, kExitInterrupted = 3;

struct Failure {
  int exit_code = kExitFailed;
  std::string message;
};
Failure failure_of(const std::exception_ptr& exception);

// Ends the program without a further word: everything has been said.
struct QuietExit {
  int exit_code = kExitDone;
};

}  // namespace dms
