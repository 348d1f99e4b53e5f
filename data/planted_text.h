// Texts in which facts are planted that nothing else in them tells, to be asked for at the end: what a cache has to keep
// although nothing refers to it for a long time.  A fact is a sentence, "The code word for NAME is WORD." or with a
// number in place of the word; its question is the same sentence up to the answer, so that a model only has to look back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace dms {

struct PlantedFact {
  bool is_number = false;
  int64_t distance = 0;  // tokens from the planted answer to where it is asked for
  std::vector<int32_t> question, answer;
};

struct PlantedText {
  std::vector<int32_t> tokens;  // without any question
  std::vector<PlantedFact> facts;
};

// `filler` with `num_facts` facts spread evenly over it, each at the nearest end of a line or sentence; cut to `length`
// tokens.  Words and numbers take turns.  A function of its arguments alone.  Throws UserError when the filler is
// shorter than `length`, or `length` leaves no room between facts.
PlantedText plant_facts(const std::vector<int32_t>& filler, int64_t length, int64_t num_facts, uint64_t seed,
                        const Tokenizer& tokenizer);

}  // namespace dms
