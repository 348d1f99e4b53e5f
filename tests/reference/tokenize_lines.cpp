// Tokenizes JSON lines for tokenizer_reference.py: tokenize_lines MODEL_DIR < {"text", "add_special_tokens"} lines
// > {"ids", "ids_with_ends", "ends", "decoded", "decoded_without_special"} lines; the two with ends know no special tokens
// around and count characters.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const auto tokenizer = dms::Tokenizer::load(argv[1]);
  std::string line;
  while (std::getline(std::cin, line)) {
    const auto request = nlohmann::json::parse(line);
    const auto text = request.at("text").get<std::string>();
    const auto ids = tokenizer->encode(text, request.at("add_special_tokens"));
    const dms::Encoding encoding = tokenizer->encode_with_ends(text);
    std::vector<size_t> ends;  // in characters, a begun one included
    size_t characters = 0, byte = 0;
    for (const size_t end : encoding.ends) {
      for (; byte < end; ++byte) characters += (text[byte] & 0xC0) != 0x80 ? 1 : 0;
      ends.push_back(characters);
    }
    std::cout << nlohmann::json{{"ids", ids},
                                {"ids_with_ends", encoding.ids},
                                {"ends", ends},
                                {"decoded", tokenizer->decode(ids, false)},
                                {"decoded_without_special", tokenizer->decode(ids, true)}}
                     .dump()
              << '\n';
  }
}
