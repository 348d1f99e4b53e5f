#include "data/prepare.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "data/documents.h"
#include "data/prepare_parts.h"
#include "data/sha256.h"
#include "data/token_file_writer.h"
#include "data/tokenizer.h"
#include "data/tokenizer_text.h"
#include "recipes/user_error.h"

namespace dms {
namespace {

constexpr uint64_t kSmallestUnitBytes = 1 << 20;
constexpr uint64_t kMostUnits = 4096;
constexpr auto kReportEvery = std::chrono::milliseconds(100);

struct Plan {
  std::vector<TextSource> sources;
  std::shared_ptr<const ChatTemplate> chat;  // nullptr: no source has conversations
  bool has_loss_mask = false;
  std::vector<std::vector<TextSlice>> units;
  uint64_t total_bytes = 0;
  std::string options_json;
  std::string fingerprint;
};

struct StopRequest {};  // ends a thread's unit without a result

uint64_t num_bytes(const std::vector<TextSlice>& unit) {
  uint64_t sum = 0;
  for (const TextSlice& slice : unit) sum += slice.end - slice.begin;
  return sum;
}

[[noreturn]] void throw_interrupted(const PrepareOptions& options) {
  throw Interrupted("stopped; the finished parts are in '" + options.out + ".parts': run the same command to go on");
}

Plan make_plan(const PrepareOptions& options, const Tokenizer& tokenizer, const std::function<bool()>& stop_requested,
               const std::function<void(const PrepareProgress&)>& on_progress) {
  Plan plan;
  plan.sources = find_sources(options.inputs);
  for (const TextSource& source : plan.sources) plan.total_bytes += source.size_bytes;
  const uint64_t unit_bytes = std::max(kSmallestUnitBytes, plan.total_bytes / kMostUnits);
  PrepareProgress progress{PrepareProgress::Phase::kReading, 0, plan.total_bytes, 0};
  nlohmann::json sources = nlohmann::json::array();
  bool has_conversations = false;
  for (size_t i = 0; i < plan.sources.size(); ++i) {
    TextSource& source = plan.sources[i];
    const auto on_bytes = [&](uint64_t count) {
      progress.done_bytes += count;
      on_progress(progress);
      if (stop_requested()) throw_interrupted(options);
    };
    for (const TextSlice& slice : scan(source, static_cast<uint32_t>(i), unit_bytes, options.records, on_bytes)) {
      if (plan.units.empty() || num_bytes(plan.units.back()) >= unit_bytes) plan.units.emplace_back();
      plan.units.back().push_back(slice);
    }
    sources.push_back({source.name, source.format, source.is_gzip, source.size_bytes, source.sha256});
    has_conversations = has_conversations || (source.kind && *source.kind != RecordKind::text);
  }
  nlohmann::json resolved = {{"append_eos", options.append_eos},
                             {"min_tokens", options.min_tokens},
                             {"add_special_tokens", true},
                             {"text_field", options.records.text_field},
                             {"skip_bad_records", options.max_bad_records}};
  if (has_conversations) {
    plan.chat = ChatTemplate::load(options.tokenizer_dir, options.chat);
    plan.has_loss_mask = options.loss_on == LossOn::assistant;
    resolved["template"] = plan.chat->name();
    resolved["template_sha256"] = plan.chat->sha256();
    resolved["date_string"] = options.chat.date_string;
    resolved["loss_on"] = plan.has_loss_mask ? "assistant" : "all";
    resolved["solutions"] = options.records.solutions;
    resolved["allow_tools"] = options.records.allow_tools;
  }
  plan.options_json = resolved.dump();
  // Whatever changes the parts stands here; the number says by which rules of this program they were made.
  plan.fingerprint = sha256_hex(nlohmann::json{
      {"rules", 2},
      {"options", resolved},
      {"tokenizer", tokenizer.sha256()},
      {"eos", tokenizer.eos_id()},
      {"bos", tokenizer.bos_id()},
      {"sources", sources},
      {"unit_bytes", unit_bytes}}.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  return plan;
}

struct EncodedDocument {
  std::vector<int32_t> ids;
  std::vector<uint8_t> loss_mask;  // empty unless the plan has masks
  bool was_repaired = false, was_altered = false;
};

EncodedDocument encode_text(const Tokenizer& tokenizer, std::string_view text, bool with_mask) {
  EncodedDocument document;
  if (text.empty()) return document;
  document.ids = tokenizer.encode(text, true);
  // Text made by a chat template begins with BOS already; the model has never seen two.
  const int32_t bos = tokenizer.bos_id();
  if (bos >= 0 && document.ids.size() >= 2 && document.ids[0] == bos && document.ids[1] == bos) {
    document.ids.erase(document.ids.begin());
  }
  if (with_mask) document.loss_mask.assign(document.ids.size(), 1);
  document.was_repaired = !is_valid_utf8(text);
  return document;
}

// The template's text says itself where BOS stands, so none is added.  A position counts when the token after it holds
// something that the assistant wrote.
EncodedDocument encode_conversation(const Tokenizer& tokenizer, const ChatTemplate& chat,
                                    const Conversation& conversation, bool with_mask, const std::string& where) {
  RenderedChat rendered;
  try {
    rendered = chat.render(conversation, false);
  } catch (const UserError& error) {
    throw UserError(where, error.problem(), error.details());
  }
  if (with_mask && !rendered.knows_assistant) {
    throw UserError(where,
                    "the model's chat template rewrites earlier turns, so it cannot be told what the assistant wrote",
                    {"train on all of the text with --loss-on all, or mark it in the template by {% generation %}"});
  }
  Encoding encoding = tokenizer.encode_with_ends(rendered.text);
  EncodedDocument document;
  for (const ChatMessage& message : conversation) {
    const size_t begin = message.content.find_first_not_of(" \t\n\r"),
                 end = message.content.find_last_not_of(" \t\n\r");
    if (message.role != "assistant" || begin == std::string::npos) continue;
    document.was_altered =
        document.was_altered || rendered.text.find(message.content.substr(begin, end - begin + 1)) == std::string::npos;
  }
  if (with_mask) {
    document.loss_mask.assign(encoding.ids.size(), 0);
    auto span = rendered.assistant.begin();
    for (size_t i = 1; i < encoding.ids.size(); ++i) {
      while (span != rendered.assistant.end() && span->end <= encoding.ends[i - 1]) ++span;
      const bool is_target = span != rendered.assistant.end() && encoding.ends[i] > span->begin;
      document.loss_mask[i - 1] = is_target ? 1 : 0;
    }
  }
  document.ids = std::move(encoding.ids);
  return document;
}

TokenPart tokenize_unit(const PrepareOptions& options, const Tokenizer& tokenizer, const Plan& plan,
                        const std::vector<TextSlice>& unit, const std::function<bool()>& should_stop,
                        const std::function<void(uint64_t)>& on_bytes) {
  TokenPart part;
  for (const TextSlice& slice : unit) {
    const TextSource& source = plan.sources[slice.source];
    const uint64_t slice_bytes = slice.end - slice.begin;
    uint64_t reported_bytes = 0;
    const auto add = [&](const Document& document, uint64_t line) {
      const std::string where = source.path + ":" + std::to_string(line);
      EncodedDocument encoded =
          document.conversation.empty()
              ? encode_text(tokenizer, document.text, plan.has_loss_mask)
              : encode_conversation(tokenizer, *plan.chat, document.conversation, plan.has_loss_mask, where);
      if (static_cast<int64_t>(encoded.ids.size()) < std::max<int64_t>(1, options.min_tokens)) {
        ++part.num_short_documents;
        return;
      }
      if (encoded.was_repaired) ++part.num_repaired_documents;
      if (encoded.was_altered) ++part.num_altered_documents;
      if (options.append_eos && encoded.ids.back() != tokenizer.eos_id()) {
        encoded.ids.push_back(tokenizer.eos_id());
        if (plan.has_loss_mask) encoded.loss_mask.push_back(0);
      }
      part.documents.push_back({encoded.ids.size(), slice.source, line});
      part.tokens.insert(part.tokens.end(), encoded.ids.begin(), encoded.ids.end());
      part.loss_mask.insert(part.loss_mask.end(), encoded.loss_mask.begin(), encoded.loss_mask.end());
    };
    for_each_record(
        source, slice, options.records,
        [&](const std::vector<Document>& documents, uint64_t line) {
          if (should_stop()) throw StopRequest();
          if (documents.empty()) ++part.num_empty_records;
          for (const Document& document : documents) {
            add(document, line);
            const uint64_t count = std::min<uint64_t>(document.text.size(), slice_bytes - reported_bytes);
            reported_bytes += count;
            on_bytes(count);
          }
        },
        [&](const UserError& error) {
          if (++part.num_bad_records > options.max_bad_records) throw error;
        });
    on_bytes(slice_bytes - reported_bytes);  // what is not text: keys, quotes, blank lines
  }
  return part;
}

// Tokenizes the units that have no part yet, on several threads.  Of several errors the one of the first unit is
// thrown: units are begun in order, so that one does not depend on the threads.
class PartMaker {
 public:
  PartMaker(const PrepareOptions& options, const Tokenizer& tokenizer, const Plan& plan, const PartsDirectory& parts,
            const std::function<bool()>& stop_requested)
      : options_(options), tokenizer_(tokenizer), plan_(plan), parts_(parts), stop_requested_(stop_requested) {}

  // Returns the number of units that were done before.
  int64_t run(const std::function<void(const PrepareProgress&)>& on_progress) {
    PrepareProgress progress{PrepareProgress::Phase::kTokenizing, 0, plan_.total_bytes, 0};
    for (size_t unit = 0; unit < plan_.units.size(); ++unit) {
      if (parts_.read(unit)) {
        progress.resumed_bytes += num_bytes(plan_.units[unit]);
      } else {
        missing_.push_back(unit);
      }
    }
    done_bytes_ = progress.resumed_bytes;
    const int jobs =
        options_.jobs > 0 ? options_.jobs : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    const size_t num_threads = std::min<size_t>(static_cast<size_t>(jobs), missing_.size());
    num_running_ = num_threads;
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < num_threads; ++i) threads.emplace_back([this] { work(); });
    try {
      while (!all_ended_within(kReportEvery)) {
        if (stop_requested_()) stopping_ = true;
        progress.done_bytes = done_bytes_;
        on_progress(progress);
      }
    } catch (...) {
      stopping_ = true;
      throw;
    }
    threads.clear();
    if (error_) std::rethrow_exception(error_);
    if (stopping_) throw_interrupted(options_);
    progress.done_bytes = done_bytes_;
    on_progress(progress);
    return static_cast<int64_t>(plan_.units.size() - missing_.size());
  }

 private:
  bool all_ended_within(std::chrono::milliseconds duration) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, duration, [this] { return num_running_ == 0; });
  }

  void work() {
    while (!stopping_ && !failed_) {
      const size_t next = next_++;
      if (next >= missing_.size()) break;
      const size_t unit = missing_[next];
      try {
        const TokenPart part = tokenize_unit(
            options_, tokenizer_, plan_, plan_.units[unit], [this] { return stopping_.load(); },
            [this](uint64_t n) { done_bytes_ += n; });
        parts_.write(unit, part);
      } catch (const StopRequest&) {
        break;
      } catch (...) {
        std::lock_guard lock(mutex_);
        failed_ = true;
        if (!error_ || unit < error_unit_) {
          error_ = std::current_exception();
          error_unit_ = unit;
        }
      }
    }
    std::lock_guard lock(mutex_);
    --num_running_;
    changed_.notify_one();
  }

  const PrepareOptions& options_;
  const Tokenizer& tokenizer_;
  const Plan& plan_;
  const PartsDirectory& parts_;
  const std::function<bool()>& stop_requested_;
  std::vector<size_t> missing_;
  std::atomic<size_t> next_ = 0;
  std::atomic<uint64_t> done_bytes_ = 0;
  std::atomic<bool> stopping_ = false, failed_ = false;

  std::mutex mutex_;  // guards the rest
  std::condition_variable changed_;
  size_t num_running_ = 0;
  size_t error_unit_ = 0;
  std::exception_ptr error_;
};

PrepareResult write_token_file(const PrepareOptions& options, const Tokenizer& tokenizer, const Plan& plan,
                               const PartsDirectory& parts, const std::function<bool()>& stop_requested,
                               const std::function<void(const PrepareProgress&)>& on_progress) {
  TokenFileInfo info;
  info.created_by = options.created_by;
  info.vocab_size = tokenizer.vocab_size();
  info.tokenizer_sha256 = tokenizer.sha256();
  info.tokenizer_name = tokenizer.name();
  info.bos_token_id = tokenizer.bos_id();
  info.eos_token_id = tokenizer.eos_id();
  info.pad_token_id = tokenizer.pad_id();
  info.options_json = plan.options_json;
  if (plan.chat != nullptr) {
    info.template_name = plan.chat->name();
    info.chat_template_sha256 = plan.chat->sha256();
    info.date_string = options.chat.date_string;
  }
  info.has_loss_mask = plan.has_loss_mask;
  for (const TextSource& source : plan.sources) info.sources.push_back({source.name, source.sha256, source.size_bytes});

  TokenFileWriter writer(options.out, std::move(info));
  PrepareResult result;
  PrepareProgress progress{PrepareProgress::Phase::kWriting, 0, plan.total_bytes, 0};
  for (size_t unit = 0; unit < plan.units.size(); ++unit) {
    const std::optional<TokenPart> part = parts.read(unit);
    if (!part)
      throw std::runtime_error("a finished part of '" + options.out + "' can no longer be read; run the command again");
    size_t begin = 0;
    for (const TokenPart::Document& document : part->documents) {
      writer.add_document(std::span(part->tokens).subspan(begin, document.num_tokens),
                          static_cast<uint32_t>(document.source), document.line,
                          plan.has_loss_mask ? std::span(part->loss_mask).subspan(begin, document.num_tokens)
                                             : std::span<const uint8_t>());
      begin += document.num_tokens;
    }
    result.num_short_documents += static_cast<int64_t>(part->num_short_documents);
    result.num_repaired_documents += static_cast<int64_t>(part->num_repaired_documents);
    result.num_altered_documents += static_cast<int64_t>(part->num_altered_documents);
    result.num_empty_records += static_cast<int64_t>(part->num_empty_records);
    result.num_bad_records += static_cast<int64_t>(part->num_bad_records);
    if (result.num_bad_records > static_cast<int64_t>(options.max_bad_records)) {
      throw UserError("--skip-bad-records",
                      "more records than " + std::to_string(options.max_bad_records) + " are not what they should be",
                      {"run it without the option to see the first one"});
    }
    progress.done_bytes += num_bytes(plan.units[unit]);
    on_progress(progress);
    if (stop_requested()) throw_interrupted(options);
  }
  writer.finish();
  result.num_sources = static_cast<int64_t>(plan.sources.size());
  result.num_documents = writer.num_documents();
  result.num_tokens = writer.num_tokens();
  result.num_units = static_cast<int64_t>(plan.units.size());
  if (plan.chat != nullptr) result.chat_template = plan.chat->name();
  for (const TextSource& source : plan.sources) {
    if (source.kind) result.kinds.push_back(source.name + ": " + name_of(*source.kind));
  }
  return result;
}

}  // namespace

PrepareResult prepare(const PrepareOptions& options, const std::function<bool()>& stop_requested,
                      const std::function<void(const PrepareProgress&)>& on_progress) {
  std::error_code ignored;  // a place that cannot be examined is refused below, when it is written to
  if (std::filesystem::is_directory(options.out, ignored)) {
    throw UserError(options.out, "is a directory; a file name is expected");
  }
  if (std::filesystem::exists(options.out, ignored) && !options.force) {
    throw UserError(options.out, "exists already", {"give another --out, or --force to replace it"});
  }
  const std::shared_ptr<const Tokenizer> tokenizer = Tokenizer::load(options.tokenizer_dir);
  if (options.append_eos && tokenizer->eos_id() < 0) {
    throw UserError(options.tokenizer_dir, "names no eos_token in tokenizer_config.json, which --append-eos needs");
  }
  const Plan plan = make_plan(options, *tokenizer, stop_requested, on_progress);
  PartsDirectory parts(options.out + ".parts", plan.fingerprint);
  try {
    const int64_t num_resumed = PartMaker(options, *tokenizer, plan, parts, stop_requested).run(on_progress);
    PrepareResult result = write_token_file(options, *tokenizer, plan, parts, stop_requested, on_progress);
    result.num_resumed_units = num_resumed;
    parts.remove_all();
    return result;
  } catch (const UserError&) {
    parts.remove_all();  // other inputs or options make another plan
    throw;
  }
}

}  // namespace dms
