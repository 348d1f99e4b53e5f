// SHA-256 by OpenSSL's libcrypto, which uses the processor's own instructions: model files are gigabytes.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace dms {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void update(std::string_view bytes);
  std::string hex();  // 64 lower-case digits; call once, last

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256_hex(std::string_view bytes);
std::string sha256_file(const std::string& path);  // throws UserError when unreadable

}  // namespace dms
