#include "recipes/user_error.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace dms {
namespace {

TEST(UserError, PutsThePlaceFirstAndIndentsTheDetails) {
  const UserError error("run.yaml:14:3", "unknown option 'x'", {"options here: a, b", "did you mean 'a'?"});
  EXPECT_STREQ(error.what(), "run.yaml:14:3: unknown option 'x'\n  options here: a, b\n  did you mean 'a'?");
  EXPECT_EQ(error.where(), "run.yaml:14:3");
  EXPECT_EQ(error.problem(), "unknown option 'x'");
  EXPECT_EQ(error.details().size(), 2u);
}

TEST(UserError, WithoutAPlaceStartsWithTheProblem) {
  EXPECT_STREQ(UserError("", "no command given").what(), "no command given");
}

struct NearestCase {
  const char* name;
  std::vector<std::string> candidates;
  const char* nearest;
};

TEST(NearestName, IsTheClosestPlausibleMisspelling) {
  const std::vector<NearestCase> cases = {
      {"ramp_step", {"final", "loss_weight", "ramp_steps"}, "ramp_steps"},
      {"lables", {"labels", "tables"}, "labels"},  // a swap is one edit, not two
      {"steps", {"step", "steps"}, "steps"},
      {"loss-weight", {"loss_weight"}, "loss_weight"},
      {"LossWeight", {"loss_weight"}, "loss_weight"},
      {"seeed", {"speed", "seed"}, "speed"},  // a tie: the first
      {"lr", {"kl"}, ""},                     // two edits make another word of two letters
      {"kll", {"kl"}, "kl"},
      {"warp", {"compression"}, ""},
      {"temprature", {"tau", "temperature"}, "temperature"},
      {"", {"a"}, ""},
      {"abc", {}, ""},
  };
  for (const NearestCase& c : cases) EXPECT_EQ(nearest_name(c.name, c.candidates), c.nearest) << c.name;
}

TEST(NearestName, DoesNotSpendSecondsOnVeryLongInput) {
  const std::vector<std::string> candidates(100, std::string(100'000, 'b'));
  EXPECT_EQ(nearest_name(std::string(100'000, 'a'), candidates), "");
}

TEST(DidYouMean, IsAQuestionOrNothing) {
  const std::vector<std::string> candidates = {"linear", "neuron"};
  EXPECT_EQ(did_you_mean("linaer", candidates), "did you mean 'linear'?");
  EXPECT_EQ(did_you_mean("conv", candidates), "");
}

}  // namespace
}  // namespace dms
