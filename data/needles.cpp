#include "data/needles.h"

#include <algorithm>
#include <cstdio>
#include <random>
#include <set>

#include "recipes/user_error.h"

namespace dms {

namespace {

enum class Haystack { noise, text, needles };
enum class Drawn { words, numbers, uuids };

struct NeedleTask {
  std::string name;
  Haystack haystack = Haystack::noise;
  int64_t num_keys = 1, num_values = 1, num_queries = 1;
  Drawn keys = Drawn::words, values = Drawn::numbers;
};

const std::vector<NeedleTask>& needle_tasks() {
  static const std::vector<NeedleTask> kTasks{
      {"niah_single_1", Haystack::noise, 1, 1, 1, Drawn::words, Drawn::numbers},
      {"niah_single_2", Haystack::text, 1, 1, 1, Drawn::words, Drawn::numbers},
      {"niah_single_3", Haystack::text, 1, 1, 1, Drawn::words, Drawn::uuids},
      {"niah_multikey_1", Haystack::text, 4, 1, 1, Drawn::words, Drawn::numbers},
      {"niah_multikey_2", Haystack::needles, 1, 1, 1, Drawn::words, Drawn::numbers},
      {"niah_multikey_3", Haystack::needles, 1, 1, 1, Drawn::uuids, Drawn::uuids},
      {"niah_multivalue", Haystack::text, 1, 4, 1, Drawn::words, Drawn::numbers},
      {"niah_multiquery", Haystack::text, 4, 1, 4, Drawn::words, Drawn::numbers},
  };
  return kTasks;
}

const NeedleTask& task_named(const std::string& name) {
  for (const NeedleTask& task : needle_tasks()) {
    if (task.name == name) return task;
  }
  throw UserError("--needle-task", "'" + name + "' is not known", {did_you_mean(name, needle_task_names())});
}

constexpr const char* kNoise =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

const std::vector<std::string> kAdjectives{
    "amber",  "brave",  "calm",   "distant", "eager",  "faint",  "gentle", "hollow", "icy",    "jolly",
    "kind",   "lively", "mellow", "narrow",  "odd",    "pale",   "quick",  "rapid",  "silent", "tender",
    "urban",  "vivid",  "warm",   "young",   "zesty",  "bitter", "clever", "dusty",  "elder",  "fancy",
    "golden", "humble", "inner",  "keen",    "lonely", "modern", "noble",  "open",   "proud",  "royal"};
const std::vector<std::string> kNouns{
    "anchor",   "bridge", "canyon", "desert", "engine",  "forest", "garden", "harbor", "island", "jungle",
    "kettle",   "ladder", "market", "needle", "orchid",  "pencil", "quarry", "ribbon", "saddle", "temple",
    "umbrella", "valley", "window", "yogurt", "zebra",   "basket", "candle", "dragon", "eagle",  "feather",
    "guitar",   "hammer", "jacket", "kitten", "lantern", "mirror", "novel",  "office", "parrot", "rocket"};

std::string draw(Drawn what, std::mt19937_64& random) {
  switch (what) {
    case Drawn::words:
      return kAdjectives[random() % kAdjectives.size()] + "-" + kNouns[random() % kNouns.size()];
    case Drawn::numbers:
      return std::to_string(1000000 + random() % 9000000);
    case Drawn::uuids:
      break;
  }
  char text[37];
  const uint64_t a = random(), b = random();
  std::snprintf(text, sizeof text, "%08x-%04x-4%03x-%04x-%012llx", static_cast<unsigned>(a >> 32),
                static_cast<unsigned>(a >> 16 & 0xffff), static_cast<unsigned>(a & 0xfff),
                static_cast<unsigned>(0x8000 | (b >> 48 & 0x3fff)),
                static_cast<unsigned long long>(b & 0xffffffffffffULL));
  return text;
}

std::string needle(const std::string& kind, const std::string& key, const std::string& value) {
  return "One of the special magic " + kind + " for " + key + " is: " + value + ".";
}

// "a", "a, and b", "a, b, and c"
std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) text += (i == 0 ? "" : i + 1 == names.size() ? ", and " : ", ") + names[i];
  return text;
}

std::vector<std::string> sentences_of(const std::string& text) {
  std::vector<std::string> sentences(1);
  for (size_t i = 0; i < text.size(); ++i) {
    const bool space = text[i] == ' ' || text[i] == '\n' || text[i] == '\t' || text[i] == '\r';
    std::string& last = sentences.back();
    if (!space) {
      last += text[i];
    } else if (!last.empty() && (last.back() == '.' || last.back() == '!' || last.back() == '?')) {
      sentences.emplace_back();
    } else if (!last.empty() && last.back() != ' ') {
      last += ' ';
    }
  }
  if (sentences.back().empty()) sentences.pop_back();
  return sentences;
}

// One item, as a function of how much of its haystack is used.
class NeedleItem {
 public:
  NeedleItem(const NeedleTask& task, const std::vector<std::string>& sentences, uint64_t seed)
      : task_(task), sentences_(sentences), seed_(seed) {
    std::mt19937_64 random(seed);
    std::set<std::string> keys;
    while (static_cast<int64_t>(keys_.size()) < task.num_keys) {
      const std::string key = draw(task.keys, random);
      if (keys.insert(key).second) keys_.push_back(key);
    }
    const bool one = task.num_values * task.num_queries == 1;
    const std::string kinds = task.values == Drawn::numbers ? "numbers" : "uuids";
    kind_ = one ? kinds.substr(0, kinds.size() - 1) : kinds;
    for (int64_t k = 0; k < task.num_keys; ++k) {
      for (int64_t v = 0; v < task.num_values; ++v) {
        const std::string value = draw(task.values, random);
        needles_.push_back(needle(kinds, keys_[static_cast<size_t>(k)], value));
        if (k < task.num_queries) answers_.push_back(value);
      }
    }
    // A text is entered at some sentence, so that items differ in more than their needles.
    if (!sentences.empty()) first_sentence_ = random() % sentences.size();
  }

  BenchmarkItem build(int64_t num_units) const {
    std::mt19937_64 random(seed_ ^ 0x9E3779B97F4A7C15ULL);
    std::vector<std::string> lines;
    for (int64_t i = 0; i < num_units; ++i) lines.push_back(haystack_unit(i, random));
    for (const std::string& text : needles_) {
      lines.insert(lines.begin() + static_cast<std::ptrdiff_t>(random() % (lines.size() + 1)), text);
    }
    std::string context;
    for (const std::string& line : lines) {
      if (!context.empty()) context += task_.haystack == Haystack::text ? ' ' : '\n';
      context += line;
    }
    const bool one = task_.num_values * task_.num_queries == 1;
    const std::string key = joined({keys_.begin(), keys_.begin() + task_.num_queries});
    BenchmarkItem item;
    item.answers = answers_;
    item.prompt = std::string(one ? "A special magic " : "Some special magic ") + kind_ + (one ? " is" : " are") +
                  " hidden within the following text. Make sure to memorize it. I will quiz you "
                  "about the " +
                  kind_ + " afterwards.\n" + context + "\nWhat " + (one ? "is" : "are all") + " the special magic " +
                  kind_ + " for " + key + " mentioned in the provided text?";
    item.answer_prefix =
        "The special magic " + kind_ + " for " + key + " mentioned in the provided text " + (one ? "is" : "are");
    return item;
  }

 private:
  std::string haystack_unit(int64_t i, std::mt19937_64& random) const {
    if (task_.haystack == Haystack::noise) return kNoise;
    if (task_.haystack == Haystack::text) {
      return sentences_[(first_sentence_ + static_cast<size_t>(i)) % sentences_.size()];
    }
    std::string key;
    do {
      key = draw(task_.keys, random);
    } while (std::find(keys_.begin(), keys_.end(), key) != keys_.end());
    return needle(task_.values == Drawn::numbers ? "numbers" : "uuids", key, draw(task_.values, random));
  }

  const NeedleTask& task_;
  const std::vector<std::string>& sentences_;
  const uint64_t seed_;
  std::vector<std::string> keys_, needles_, answers_;
  std::string kind_;
  size_t first_sentence_ = 0;
};

}  // namespace

const std::vector<std::string>& needle_task_names() {
  static const std::vector<std::string> kNames = [] {
    std::vector<std::string> names;
    for (const NeedleTask& task : needle_tasks()) names.push_back(task.name);
    return names;
  }();
  return kNames;
}

std::vector<BenchmarkItem> make_needle_items(const NeedleOptions& options,
                                             const std::function<int64_t(std::string_view)>& count_tokens) {
  const NeedleTask& task = task_named(options.task);
  std::vector<std::string> sentences;
  if (task.haystack == Haystack::text) {
    sentences = sentences_of(options.haystack_text);
    if (sentences.empty()) {
      throw UserError("--needle-text", "is missing or empty",
                      {task.name + " hides its needles in a text: give a file"});
    }
  }
  std::vector<BenchmarkItem> items;
  for (int64_t i = 0; i < options.count; ++i) {
    const NeedleItem source(task, sentences, options.seed * 1000003 + static_cast<uint64_t>(i));
    const auto tokens = [&](int64_t num_units) {
      const BenchmarkItem item = source.build(num_units);
      return count_tokens(item.prompt + " " + item.answer_prefix);
    };
    if (tokens(0) > options.num_tokens) {
      throw UserError("needles", "need " + std::to_string(tokens(0)) + " tokens for the question alone",
                      {"asked for prompts of " + std::to_string(options.num_tokens)});
    }
    // The most of the haystack that fits.
    int64_t fits = 0, too_many = 1;
    while (tokens(too_many) <= options.num_tokens) {
      fits = too_many;
      too_many *= 2;
    }
    while (too_many - fits > 1) {
      const int64_t middle = (fits + too_many) / 2;
      (tokens(middle) <= options.num_tokens ? fits : too_many) = middle;
    }
    if (task.haystack == Haystack::text && fits > std::ssize(sentences)) {
      throw UserError("--needle-text", "has " + std::to_string(sentences.size()) + " sentences, too few to fill " +
                                           std::to_string(options.num_tokens) + " tokens");
    }
    items.push_back(source.build(fits));
    items.back().id = task.name + "-" + std::to_string(options.num_tokens) + "-" + std::to_string(i);
  }
  return items;
}

}  // namespace dms
