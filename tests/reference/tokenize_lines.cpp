// Tokenizes JSON lines for tokenizer_reference.py: tokenize_lines MODEL_DIR < {"text", "add_special_tokens"} lines
// > {"ids", "decoded", "decoded_without_special"} lines.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "data/tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const auto tokenizer = dms::Tokenizer::load(argv[1]);
  std::string line;
  while (std::getline(std::cin, line)) {
    const auto request = nlohmann::json::parse(line);
    const auto ids = tokenizer->encode(request.at("text").get<std::string>(), request.at("add_special_tokens"));
    std::cout << nlohmann::json{{"ids", ids},
                                {"decoded", tokenizer->decode(ids, false)},
                                {"decoded_without_special", tokenizer->decode(ids, true)}}
                     .dump()
              << '\n';
  }
}
