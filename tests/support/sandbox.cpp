#include "tests/support/sandbox.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <utility>

namespace dms {
namespace fs = std::filesystem;

Sandbox::Sandbox(const std::map<std::string, std::string>& files) {
  for (const auto& [name, bytes] : files) write(name, bytes);
}

std::string Sandbox::read(const std::string& name) const {
  std::ifstream file(directory_ / name, std::ios::binary);
  if (!file) throw std::runtime_error("no file " + name + " in the sandbox");
  return std::string(std::istreambuf_iterator<char>(file), {});
}

void Sandbox::write(const std::string& name, const std::string& bytes) {
  fs::create_directories(fs::path(directory_ / name).parent_path());
  if (name.ends_with('/')) return;
  std::ofstream file(directory_ / name, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + name);
}

std::map<std::string, std::string> Sandbox::contents() const {
  std::map<std::string, std::string> found;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(path())) {
    const std::string name = fs::relative(entry.path(), path()).string();
    if (entry.is_symlink()) {
      found[name] = "-> " + fs::read_symlink(entry.path()).string();
    } else if (entry.is_directory()) {
      found[name + "/"] = "";
    } else {
      found[name] = read(name);
    }
  }
  return found;
}

Spoil nothing_spoiled() {
  return [](Sandbox&) {};
}

Spoil written(std::string name, std::string bytes) {
  return [=](Sandbox& sandbox) { sandbox.write(name, bytes); };
}

Spoil removed(std::string name) {
  return [=](Sandbox& sandbox) {
    if (fs::remove_all(sandbox / name) == 0) throw std::runtime_error("nothing to remove: " + name);
  };
}

Spoil truncated(std::string name, size_t size_bytes) {
  return [=](Sandbox& sandbox) {
    const std::string bytes = sandbox.read(name);
    if (bytes.size() <= size_bytes) throw std::runtime_error(name + " is no longer than that");
    sandbox.write(name, bytes.substr(0, size_bytes));
  };
}

Spoil flipped(std::string name, size_t offset) {
  return [=](Sandbox& sandbox) {
    std::string bytes = sandbox.read(name);
    bytes.at(offset) = static_cast<char>(bytes.at(offset) ^ 0x10);
    sandbox.write(name, bytes);
  };
}

Spoil appended(std::string name, std::string bytes) {
  return [=](Sandbox& sandbox) { sandbox.write(name, sandbox.read(name) + bytes); };
}

Spoil replaced(std::string name, std::string from, std::string to) {
  return [=](Sandbox& sandbox) {
    std::string bytes = sandbox.read(name);
    const size_t found = bytes.find(from);
    if (found == std::string::npos) throw std::runtime_error("'" + from + "' is not in " + name);
    if (bytes.find(from, found + 1) != std::string::npos) {
      throw std::runtime_error("'" + from + "' is more than once in " + name);
    }
    sandbox.write(name, bytes.replace(found, from.size(), to));
  };
}

Spoil made_directory(std::string name) {
  return [=](Sandbox& sandbox) { fs::create_directories(sandbox / name); };
}

Spoil made_read_only_directory(std::string name) {
  return [=](Sandbox& sandbox) {
    fs::create_directories(sandbox / name);
    fs::permissions(sandbox / name, fs::perms::owner_read | fs::perms::owner_exec);
  };
}

Spoil both(Spoil first, Spoil second) {
  return [=](Sandbox& sandbox) {
    first(sandbox);
    second(sandbox);
  };
}

}  // namespace dms
