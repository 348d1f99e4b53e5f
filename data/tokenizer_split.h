// Pre-tokenization: cuts a text into the pieces inside which BPE merges.  One object serves all threads.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer_json.h"

namespace dms {

class PieceSplitter {
 public:
  explicit PieceSplitter(const std::vector<SplitStep>& steps);
  ~PieceSplitter();

  // The pieces of valid UTF-8, in order; together they are the text.  Views into `text`.
  std::vector<std::string_view> split(std::string_view text) const;

 private:
  struct Step;
  std::vector<std::unique_ptr<Step>> steps_;
};

}  // namespace dms
