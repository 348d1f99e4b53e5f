// Writes recipes/plans.md: what each recipe for a target model costs on H100s, as `dms plan` computes it.
//   plan_tables REPOSITORY           writes the page
//   plan_tables REPOSITORY --check   writes nothing; ends with 1, naming the first line that differs, if the page is
//                                    not what it would write
// Of each model only config.json is needed; the released ones lie in tests/model/configs.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "data/staged_file.h"
#include "trainer/plan.h"

namespace dms {
namespace {

namespace fs = std::filesystem;

constexpr const char* kHead =
    R"(# What the recipes cost

Written by `build/plan_tables .`; do not edit. **Nothing here has been measured**: bytes are computed from each model's
config.json, seconds from data-sheet rates of the H100 SXM (%s; %.0f%% of the GEMM rate
assumed). `dms plan RECIPE --device h100 --rates FILE` replaces the rates by measured ones.

GiB are per GPU, beside %.1f GiB for the process (CUDA context and workspaces: assumed); "peak" is the most
that is there at a time. Placement and activation plan are what `auto` settles for. A dash: it does not fit.
)";

constexpr const char* kColumns =
    "| recipe | tokens a sequence | placement, activations | weights | activations | head | warm start | peak | step | "
    "tokens | hours | longest that fits |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n";

template <class... Args>
std::string format(const char* pattern, Args... args) {
  char text[1024];
  std::snprintf(text, sizeof(text), pattern, args...);
  return text;
}

std::string gib(int64_t bytes) { return format("%.1f", static_cast<double>(bytes) / (1 << 30)); }

std::string row(const std::string& link, const Recipe& recipe, const Plan& plan) {
  const RankBytes& b = plan.per_rank;
  std::string text = "| " + link + " | " + std::to_string(recipe.trainer.sequence_length) + " | ";
  text += std::string(name_of(recipe.trainer.placement)) + ", " + name_of(recipe.trainer.activation_checkpointing);
  for (const int64_t bytes : {b.weights, b.activations, b.head, b.warm_start}) text += " | " + gib(bytes);
  text += " | " + (plan.fits ? gib(b.total) : "- (" + gib(b.total) + ")");
  return text + format(" | %.1f s | %.1fM | %.2g | %ld |\n", plan.step_seconds, static_cast<double>(plan.tokens) / 1e6,
                       plan.hours, plan.largest_sequence);
}

std::string page(const fs::path& repository) {
  const DeviceRates device = published_devices().front();
  std::string text = format(kHead, device.source.c_str(), 100.0 * device.efficiency,
                            static_cast<double>(device.process_bytes) / (1 << 30));
  for (const int64_t num_ranks : {8, 1}) {
    for (const auto& [title, folder] : {std::pair<const char*, const char*>{"Our recipes", ""},
                                        std::pair<const char*, const char*>{"The official schedule", "official/"}}) {
      text += format("\n## %s on %ld H100\n\n", title, num_ranks) + kColumns;
      std::vector<std::string> names;
      for (const fs::directory_entry& entry : fs::directory_iterator(repository / "recipes" / folder)) {
        if (entry.path().extension() == ".yaml") names.push_back(entry.path().stem().string());
      }
      std::sort(names.begin(), names.end());
      for (const std::string& name : names) {
        if (name == "smollm2-135m") continue;  // for a laptop
        Recipe recipe = read_recipe((repository / "recipes" / (folder + name + ".yaml")).string(), {});
        const std::string config = (repository / "tests/model/configs" / (name + ".json")).string();
        const Architecture architecture = parse_architecture(read_file(config), config);
        settle_for_device(recipe, architecture, num_ranks, device);
        text += row("[" + name + "](" + folder + name + ".yaml)", recipe,
                    make_plan(recipe, architecture, num_ranks, device));
      }
    }
  }
  return text;
}

int check(const std::string& path, const std::string& expected) {
  std::istringstream is_lines(read_file(path)), expected_lines(expected);
  for (int number = 1;; ++number) {
    std::string is, wanted;
    const bool more = static_cast<bool>(std::getline(is_lines, is));
    if (!std::getline(expected_lines, wanted) && !more) return 0;
    if (is == wanted) continue;
    std::fprintf(stderr, "%s:%d: is not up to date: run build/plan_tables .\n- %s\n+ %s\n", path.c_str(), number,
                 is.c_str(), wanted.c_str());
    return 1;
  }
}

int run(const std::vector<std::string>& arguments) {
  const bool only_check = arguments.size() == 2 && arguments[1] == "--check";
  if (arguments.empty() || (arguments.size() > 1 && !only_check)) {
    std::fprintf(stderr, "usage: plan_tables REPOSITORY [--check]\n");
    return 2;
  }
  const std::string path = arguments[0] + "/recipes/plans.md";
  if (only_check) return check(path, page(arguments[0]));
  write_file(path, page(arguments[0]));
  return 0;
}

}  // namespace
}  // namespace dms

int main(int argc, char** argv) {
  try {
    return dms::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "plan_tables: %s\n", error.what());
    return 1;
  }
}
