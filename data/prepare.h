// `dms prepare`: text in, token file out.  The inputs are cut into units of work; threads tokenize them into parts, in
// any order; the parts are concatenated in input order, so that the result does not depend on the number of threads
// or on interruptions.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/chat_template.h"
#include "data/records.h"

namespace dms {

// Which positions of a conversation count in the loss: those that predict what the assistant wrote, or all.
enum class LossOn { assistant, all };

struct PrepareOptions {
  std::string tokenizer_dir;
  std::string out;
  std::vector<std::string> inputs;
  int jobs = 0;  // threads; 0 = one a processor
  bool append_eos = false;
  int64_t min_tokens = 1;  // shorter documents are left out (their EOS not counted)
  bool force = false;      // replace an existing `out`
  RecordOptions records;
  ChatOptions chat;
  LossOn loss_on = LossOn::assistant;
  uint64_t max_bad_records = 0;  // so many records may be left out because they are not what they should be
  std::string created_by;
};

struct PrepareProgress {
  enum class Phase { kReading, kTokenizing, kWriting };
  Phase phase = Phase::kReading;
  uint64_t done_bytes = 0;  // of the inputs
  uint64_t total_bytes = 0;
  uint64_t resumed_bytes = 0;  // the part of done_bytes that an earlier run did
};

struct PrepareResult {
  int64_t num_sources = 0;
  int64_t num_documents = 0;
  int64_t num_tokens = 0;
  int64_t num_short_documents = 0;
  int64_t num_repaired_documents = 0;  // invalid UTF-8 became U+FFFD
  int64_t num_altered_documents = 0;   // the chat template leaves out some of what the assistant wrote
  int64_t num_empty_records = 0;       // none of their solutions was verified
  int64_t num_bad_records = 0;
  std::string chat_template;       // its name; empty: no conversation among the inputs
  std::vector<std::string> kinds;  // "NAME: text", for each input with records
  int64_t num_units = 0;
  int64_t num_resumed_units = 0;
};

// `stop_requested` is asked often; once it says yes, the finished parts are kept and Interrupted is thrown.
// `on_progress` is called on the calling thread a few times a second.  Throws UserError for wrong input, before
// anything is written where it can.
PrepareResult prepare(const PrepareOptions& options, const std::function<bool()>& stop_requested,
                      const std::function<void(const PrepareProgress&)>& on_progress);

}  // namespace dms
