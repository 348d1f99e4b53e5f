// A line of a JSONL data set, and every built-in chat template on what it holds.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "data/chat_families.h"
#include "data/records.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const dms::RecordOptions options;
  dms::expect_at_most_user_error([&] {
    const nlohmann::json record = dms::parse_record(dms::text_of(data, size), "a.jsonl:1");
    const dms::RecordKind kind = dms::kind_of(record, options).value_or(dms::RecordKind::text);
    for (const dms::Document& document : dms::documents_of(record, kind, options, "a.jsonl:1")) {
      for (const dms::ChatFamily& family : dms::chat_families()) {
        dms::expect_at_most_user_error([&] {
          const dms::RenderedChat chat = family.render(document.conversation, true, "<s>", "system", "today");
          size_t end = 0;
          for (const auto& span : chat.assistant) {
            if (span.begin < end || span.end < span.begin || span.end > chat.text.size()) std::abort();
            end = span.end;
          }
        });
      }
    }
  });
  return 0;
}
