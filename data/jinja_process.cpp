#include "data/jinja_process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <mutex>
#include <nlohmann/json.hpp>
#include <vector>

#include "data/chat_scripts.h"
#include "data/staged_file.h"
#include "data/tokenizer_text.h"
#include "recipes/user_error.h"

namespace dms {
namespace {

using Json = nlohmann::json;

// Byte positions of character positions that do not decrease.
class CharacterPlaces {
 public:
  explicit CharacterPlaces(std::string_view text) : text_(text) {}
  size_t byte_of(size_t character) {
    for (; character_ < character && byte_ < text_.size(); ++character_) {
      byte_ += first_character(text_.substr(byte_)).num_bytes;
    }
    return byte_;
  }

 private:
  std::string_view text_;
  size_t character_ = 0, byte_ = 0;
};

}  // namespace

struct JinjaProcess::State {
  pid_t pid = -1;
  int socket = -1;
  std::mutex mutex;
  std::string received;

  ~State() {
    if (socket >= 0) ::close(socket);  // the child reads the end of its input and ends
    if (pid > 0) ::waitpid(pid, nullptr, 0);
  }

  // Empty when the child has ended.
  std::string exchange(const std::string& line) {
    for (size_t sent = 0; sent < line.size();) {
      const ssize_t count = ::send(socket, line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return "";
      sent += static_cast<size_t>(count);
    }
    size_t newline;
    while ((newline = received.find('\n')) == std::string::npos) {
      char block[1 << 16];
      const ssize_t count = ::recv(socket, block, sizeof block, 0);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return "";
      received.append(block, static_cast<size_t>(count));
    }
    std::string answer = received.substr(0, newline);
    received.erase(0, newline + 1);
    return answer;
  }
};

JinjaProcess::JinjaProcess(std::unique_ptr<State> state) : state_(std::move(state)) {}
JinjaProcess::~JinjaProcess() = default;

std::unique_ptr<JinjaProcess> JinjaProcess::start(const std::string& python, const std::string& template_text,
                                                  const std::string& date_string, const std::string& variables_json) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) throw IoError(python, "connect to", errno);
  auto state = std::make_unique<State>();
  state->socket = ends[0];
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETPGROUP);  // Ctrl-C is for this program: it asks for an orderly end
  const std::string script(kRenderChatPy);
  const std::string isolated = "-I", command = "-c";
  std::vector<char*> argv;
  for (const std::string* word : {&python, &isolated, &command, &script})
    argv.push_back(const_cast<char*>(word->c_str()));
  argv.push_back(nullptr);
  const int failure = ::posix_spawnp(&state->pid, python.c_str(), &actions, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  ::close(ends[1]);
  if (failure != 0) {
    state->pid = -1;
    return nullptr;
  }
  const Json setup = {
      {"template", template_text}, {"date_string", date_string}, {"variables", Json::parse(variables_json)}};
  const std::string answer = state->exchange(setup.dump() + "\n");
  if (answer.empty()) return nullptr;
  if (const Json parsed = Json::parse(answer); parsed.contains("error")) {
    throw UserError("chat template", parsed["error"].get<std::string>());
  }
  return std::unique_ptr<JinjaProcess>(new JinjaProcess(std::move(state)));
}

RenderedChat JinjaProcess::render(const Conversation& conversation, bool add_generation_prompt) const {
  Json messages = Json::array();
  for (const ChatMessage& message : conversation) {
    messages.push_back({{"role", message.role}, {"content", message.content}});
  }
  const Json request = {{"messages", messages}, {"add_generation_prompt", add_generation_prompt}};
  std::string answer;
  {
    std::lock_guard lock(state_->mutex);
    answer = state_->exchange(request.dump() + "\n");
  }
  if (answer.empty()) throw std::runtime_error("the Python process that renders chat templates has ended");
  const Json parsed = Json::parse(answer);
  if (parsed.contains("error")) {
    throw UserError("", "the model's chat template refuses this conversation: " + parsed["error"].get<std::string>());
  }
  RenderedChat chat;
  chat.text = parsed["text"].get<std::string>();
  chat.knows_assistant = !parsed["spans"].is_null();
  CharacterPlaces places(chat.text);
  for (const Json& span : parsed["spans"]) {
    const size_t begin = places.byte_of(span[0].get<size_t>());
    chat.assistant.push_back({begin, places.byte_of(span[1].get<size_t>())});
  }
  return chat;
}

}  // namespace dms
