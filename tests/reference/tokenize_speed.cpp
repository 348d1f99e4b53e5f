// How fast a file is tokenized, for tokenizer_speed.py: tokenize_speed MODEL_DIR FILE THREADS
// The file is cut into documents of about 10 kB at line ends.  Prints {"seconds", "bytes", "tokens"}.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <iostream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "data/tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const auto tokenizer = dms::Tokenizer::load(argv[1]);
  std::ifstream file(argv[2], std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::string_view> documents;
  for (size_t begin = 0; begin < text.size();) {
    const size_t line_end = text.find('\n', std::min(begin + 10'000, text.size()));
    const size_t end = line_end == std::string::npos ? text.size() : line_end + 1;
    documents.push_back(std::string_view(text).substr(begin, end - begin));
    begin = end;
  }
  std::atomic<size_t> next = 0, num_tokens = 0;
  const auto start = std::chrono::steady_clock::now();
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < std::stoi(argv[3]); ++i) {
      threads.emplace_back([&] {
        for (size_t at = next++; at < documents.size(); at = next++) {
          num_tokens += tokenizer->encode(documents[at], false).size();
        }
      });
    }
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::cout << "{\"seconds\": " << seconds << ", \"bytes\": " << text.size() << ", \"tokens\": " << num_tokens << "}\n";
}
