// A directory of valid inputs for one run of the program, and small ways to spoil them.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <string>

#include "tests/support/temporary_directory.h"

namespace dms {

class Sandbox {
 public:
  // `files`: name below the directory -> bytes; a name that ends with '/' is a directory.
  explicit Sandbox(const std::map<std::string, std::string>& files);

  const std::string& path() const { return directory_.path(); }
  std::string operator/(const std::string& name) const { return directory_ / name; }

  std::string read(const std::string& name) const;
  // Creates the directories that `name` needs.
  void write(const std::string& name, const std::string& bytes);
  // Every regular file below, links not followed: name -> bytes; directories as "name/" -> "".
  std::map<std::string, std::string> contents() const;

 private:
  TemporaryDirectory directory_;
};

using Spoil = std::function<void(Sandbox&)>;

// Each throws std::runtime_error when the file is not as it expects, so that no case passes by accident.
Spoil nothing_spoiled();
Spoil written(std::string name, std::string bytes);
Spoil removed(std::string name);
Spoil truncated(std::string name, size_t size_bytes);
Spoil flipped(std::string name, size_t offset);  // one bit of one byte
Spoil appended(std::string name, std::string bytes);
Spoil replaced(std::string name, std::string from, std::string to);  // the one place where `from` occurs
Spoil made_directory(std::string name);
Spoil made_read_only_directory(std::string name);  // for a child that is bound_by_permissions
Spoil both(Spoil first, Spoil second);

}  // namespace dms
