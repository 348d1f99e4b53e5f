#include "tests/support/sandbox.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace dms {
namespace {

TEST(Sandbox, SpoilsAsAskedAndReportsItsContents) {
  Sandbox sandbox({{"a/b.txt", "hello"}, {"c", "xyz"}});
  truncated("a/b.txt", 2)(sandbox);
  flipped("c", 1)(sandbox);
  appended("c", "!")(sandbox);
  made_directory("d")(sandbox);
  const std::map<std::string, std::string> expected = {{"a/", ""}, {"a/b.txt", "he"}, {"c", "xiz!"}, {"d/", ""}};
  EXPECT_EQ(sandbox.contents(), expected);
  both(replaced("c", "xi", "q"), removed("a"))(sandbox);
  const std::map<std::string, std::string> rest = {{"c", "qz!"}, {"d/", ""}};
  EXPECT_EQ(sandbox.contents(), rest);
}

TEST(Sandbox, RefusesToSpoilWhatIsNotThere) {
  const std::map<std::string, std::string> files = {{"c", "abab"}};
  Sandbox sandbox(files);
  EXPECT_THROW(truncated("c", 4)(sandbox), std::runtime_error);
  EXPECT_THROW(removed("none")(sandbox), std::runtime_error);
  EXPECT_THROW(replaced("c", "x", "y")(sandbox), std::runtime_error);
  EXPECT_THROW(replaced("c", "ab", "y")(sandbox), std::runtime_error);
  EXPECT_THROW(flipped("c", 4)(sandbox), std::out_of_range);
}

}  // namespace
}  // namespace dms
