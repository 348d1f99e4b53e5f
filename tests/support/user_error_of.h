// The message of the UserError that an action throws, for tests of what the user reads.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "recipes/user_error.h"

namespace dms {

// "(no UserError)" when the action succeeds; other exceptions pass through and fail the test.
template <class Action>
std::string user_error_of(const Action& action) {
  try {
    action();
  } catch (const UserError& error) {
    return error.what();
  }
  return "(no UserError)";
}

// For EXPECT_TRUE(says(message, fragment)).
inline ::testing::AssertionResult says(const std::string& message, const std::string& fragment) {
  if (message != "(no UserError)" && message.find(fragment) != std::string::npos) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "the message\n  " << message << "\nlacks\n  " << fragment;
}

}  // namespace dms
