#include "trainer/tensorboard.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <protozero/pbf_builder.hpp>
#include <system_error>

#include "data/staged_file.h"

namespace dms {
namespace {

namespace fs = std::filesystem;

// Field numbers of event.proto and summary.proto.
enum class EventField : protozero::pbf_tag_type {
  wall_time = 1,
  step = 2,
  file_version = 3,
  summary = 5,
  session_log = 7
};
enum class SessionLogField : protozero::pbf_tag_type { status = 1 };
enum class SummaryField : protozero::pbf_tag_type { value = 1 };
enum class ValueField : protozero::pbf_tag_type { tag = 1, simple_value = 2 };
constexpr int32_t kSessionStart = 1;  // SessionLog.SessionStatus.START

constexpr std::string_view kFilePrefix = "events.out.tfevents.";
constexpr size_t kStampDigits = 10;

constexpr std::array<uint32_t, 256> crc32c_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit) remainder = (remainder >> 1) ^ ((remainder & 1) ? 0x82F63B78u : 0u);
    table[byte] = remainder;
  }
  return table;
}

void append_little_endian(std::string& out, uint64_t value, int num_bytes) {
  for (int i = 0; i < num_bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xFF));
}

double wall_seconds_now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string host_name() {
  char name[256] = {};
  if (::gethostname(name, sizeof name - 1) != 0) return "localhost";
  return name;
}

// The unix second in an event file's name, or -1 for any other file.
int64_t file_stamp(std::string_view file_name) {
  if (!file_name.starts_with(kFilePrefix) || file_name.size() < kFilePrefix.size() + kStampDigits) return -1;
  const char* begin = file_name.data() + kFilePrefix.size();
  int64_t stamp = -1;
  const auto [end, error] = std::from_chars(begin, begin + kStampDigits, stamp);
  return error == std::errc() && end == begin + kStampDigits ? stamp : -1;
}

// TensorBoard reads the files of a directory in the order of their names, so a resumed run's file must sort last even
// if it starts within the same second or the clock was set back.
std::string new_file_path(const std::string& log_dir) {
  int64_t stamp = static_cast<int64_t>(wall_seconds_now());
  for (const fs::directory_entry& entry : fs::directory_iterator(log_dir)) {
    stamp = std::max(stamp, file_stamp(entry.path().filename().string()) + 1);
  }
  char digits[32];
  std::snprintf(digits, sizeof digits, "%0*lld", static_cast<int>(kStampDigits), static_cast<long long>(stamp));
  return log_dir + "/" + std::string(kFilePrefix) + digits + "." + host_name() + "." + std::to_string(::getpid()) +
         ".0";
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static constexpr std::array<uint32_t, 256> kTable = crc32c_table();
  uint32_t remainder = 0xFFFFFFFFu;
  for (const char byte : bytes) remainder = (remainder >> 8) ^ kTable[(remainder ^ static_cast<uint8_t>(byte)) & 0xFF];
  return remainder ^ 0xFFFFFFFFu;
}

uint32_t masked_crc32c(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

std::string tfrecord(std::string_view data) {
  std::string record;
  append_little_endian(record, data.size(), 8);
  append_little_endian(record, masked_crc32c(record), 4);
  record.append(data);
  append_little_endian(record, masked_crc32c(data), 4);
  return record;
}

std::string file_version_event(double wall_seconds) {
  std::string bytes;
  protozero::pbf_builder<EventField> event(bytes);
  event.add_double(EventField::wall_time, wall_seconds);
  event.add_string(EventField::file_version, "brain.Event:2");
  return bytes;
}

std::string session_start_event(double wall_seconds, int64_t step) {
  std::string bytes;
  protozero::pbf_builder<EventField> event(bytes);
  event.add_double(EventField::wall_time, wall_seconds);
  event.add_int64(EventField::step, step);
  protozero::pbf_builder<SessionLogField> session_log(event, EventField::session_log);
  session_log.add_enum(SessionLogField::status, kSessionStart);
  return bytes;
}

std::string scalars_event(double wall_seconds, int64_t step, std::span<const TensorBoardScalar> scalars) {
  std::string bytes;
  protozero::pbf_builder<EventField> event(bytes);
  event.add_double(EventField::wall_time, wall_seconds);
  event.add_int64(EventField::step, step);
  protozero::pbf_builder<SummaryField> summary(event, EventField::summary);
  for (const TensorBoardScalar& scalar : scalars) {
    protozero::pbf_builder<ValueField> value(summary, SummaryField::value);
    value.add_string(ValueField::tag, scalar.tag.data(), scalar.tag.size());
    value.add_float(ValueField::simple_value, static_cast<float>(scalar.value));
  }
  return bytes;
}

TensorBoardWriter::TensorBoardWriter(const std::string& log_dir, int64_t first_step) {
  std::error_code error;
  fs::create_directories(log_dir, error);
  if (error) throw IoError(log_dir, "create", error.value());
  file_ = std::make_unique<AppendFile>(new_file_path(log_dir), AppendFile::Mode::create);
  const double now = wall_seconds_now();
  file_->append(tfrecord(file_version_event(now)) + tfrecord(session_start_event(now, first_step)));
}

void TensorBoardWriter::append(int64_t step, std::span<const TensorBoardScalar> scalars) {
  file_->append(tfrecord(scalars_event(wall_seconds_now(), step, scalars)));
}

}  // namespace dms
