#include "data/planted_text.h"

#include <algorithm>
#include <array>
#include <random>
#include <set>

#include "recipes/user_error.h"

namespace dms {

namespace {

constexpr std::array kNames{"Alice",  "Boris", "Clara",  "David",  "Elena",  "Frank", "Greta",  "Henry",
                            "Irene",  "James", "Karen",  "Lucas",  "Maria",  "Nadia", "Oscar",  "Paula",
                            "Robert", "Sarah", "Thomas", "Ursula", "Victor", "Wendy", "Xavier", "Zoe"};
constexpr std::array kWords{"apple",  "river",   "castle", "violin", "tiger",  "copper", "garden", "rocket",
                            "pepper", "mirror",  "island", "hammer", "candle", "desert", "falcon", "marble",
                            "orange", "thunder", "velvet", "winter", "anchor", "butter", "dragon", "silver"};
constexpr int64_t kTokensPerFact = 32;  // at least so much text for each

bool ends_a_sentence(const std::string& text) {
  return text.find('\n') != std::string::npos || text.ends_with('.') || text.ends_with('!') || text.ends_with('?');
}

}  // namespace

PlantedText plant_facts(const std::vector<int32_t>& filler, int64_t length, int64_t num_facts, uint64_t seed,
                        const Tokenizer& tokenizer) {
  if (std::ssize(filler) < length) {
    throw UserError("--sequence-length", std::to_string(length) + " is longer than the text of " +
                                             std::to_string(filler.size()) + " tokens");
  }
  if (num_facts > std::ssize(kNames) || num_facts * kTokensPerFact > length) {
    throw UserError("--facts", std::to_string(num_facts) + " do not fit " + std::to_string(length) + " tokens",
                    {"one needs " + std::to_string(kTokensPerFact) + " tokens, and there are " +
                     std::to_string(kNames.size()) + " names"});
  }
  std::mt19937_64 random(seed);
  std::vector<std::string> names(kNames.begin(), kNames.end()), words(kWords.begin(), kWords.end());
  for (std::vector<std::string>* list : {&names, &words}) {  // Fisher-Yates, not std::shuffle: the same everywhere
    for (size_t i = list->size() - 1; i > 0; --i) std::swap((*list)[i], (*list)[random() % (i + 1)]);
  }

  PlantedText text;
  std::vector<int64_t> answer_ends;
  size_t taken = 0;  // of the filler
  for (int64_t f = 0; f < num_facts; ++f) {
    PlantedFact fact;
    fact.is_number = f % 2 == 1;
    const auto index = static_cast<size_t>(f);
    const std::string answer = fact.is_number ? std::to_string(10000 + random() % 90000) : words[index];
    const std::string statement =
        std::string("\nThe code ") + (fact.is_number ? "number" : "word") + " for " + names[index] + " is";
    fact.question = tokenizer.encode(statement, false);
    fact.answer = tokenizer.encode(" " + answer, false);

    const auto goal = static_cast<size_t>((2 * f + 1) * length / (2 * num_facts));
    const size_t latest = goal + static_cast<size_t>(kTokensPerFact / 2);
    while (text.tokens.size() < latest && taken < filler.size()) {
      const bool may_stop =
          text.tokens.size() >= goal && ends_a_sentence(tokenizer.decode({text.tokens.back()}, false));
      if (may_stop) break;
      text.tokens.push_back(filler[taken++]);
    }
    text.tokens.insert(text.tokens.end(), fact.question.begin(), fact.question.end());
    text.tokens.insert(text.tokens.end(), fact.answer.begin(), fact.answer.end());
    answer_ends.push_back(std::ssize(text.tokens));
    const std::vector<int32_t> end = tokenizer.encode(".\n", false);
    text.tokens.insert(text.tokens.end(), end.begin(), end.end());
    text.facts.push_back(std::move(fact));
  }
  if (std::ssize(text.tokens) > length) {
    throw UserError("--facts", std::to_string(num_facts) + " take more than " + std::to_string(length) + " tokens");
  }
  while (std::ssize(text.tokens) < length) text.tokens.push_back(filler[taken++]);
  for (size_t f = 0; f < text.facts.size(); ++f) {
    text.facts[f].distance = length + std::ssize(text.facts[f].question) - answer_ends[f];
  }
  return text;
}

}  // namespace dms
