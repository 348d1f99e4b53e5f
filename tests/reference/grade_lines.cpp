// Grades what a reference test asks it to: lines of {"kind", "text", "answer"} in, a 0 or 1 (or what is boxed) a line out.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "data/answer_grading.h"

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    const auto question = nlohmann::json::parse(line);
    const std::string kind = question.at("kind"), text = question.at("text"), answer = question.at("answer");
    if (kind == "boxed") {
      const auto boxed = dms::last_boxed(text);
      std::puts(nlohmann::json(boxed ? nlohmann::json(*boxed) : nlohmann::json(nullptr)).dump().c_str());
    } else if (kind == "letter") {
      std::puts(dms::chosen_letter(text) == answer.at(0) ? "1" : "0");
    } else {
      std::puts((kind == "integer" ? dms::grades_as_integer(text, answer) : dms::grades_as_math(text, answer)) ? "1"
                                                                                                               : "0");
    }
  }
  return 0;
}
